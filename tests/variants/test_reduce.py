"""Sums over the processes of a run; what several processes get is in tests/trainer/machine/test_processes.py."""

from __future__ import annotations

import torch

from variants.core import collectives


def test_one_process_is_the_whole_run():
    part = torch.arange(3.0)
    assert collectives.count() == 1 and collectives.rank() == 0
    assert collectives.all_reduce_sum(part) is part
