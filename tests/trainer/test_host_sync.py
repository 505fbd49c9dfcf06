"""A step reads no number off the device but one: the gradients' norm, which says whether the step counts."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainer.test_every_method import LOOP, METHODS
from trainer.loop import Loop

# What makes Python wait for the device, with or without a GPU.
READS = {
    torch.ops.aten._local_scalar_dense.default: "item",
    torch.ops.aten.equal.default: "equal",
    torch.ops.aten.nonzero.default: "nonzero",
    torch.ops.aten.is_nonzero.default: "bool",
    torch.ops.aten.masked_select.default: "masked_select",
    torch.ops.aten._unique2.default: "unique",
}


class Reading(TorchDispatchMode):
    """Counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in READS:
            self.found[READS[func]] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def reads_of_a_step(carry_out, monkeypatch):
    """What each step of a run reads, between its first hook and its last."""
    steps: list[Counter[str]] = []
    begin, end = Loop.begin_step, Loop.end_step
    modes: list[Reading] = []

    def begin_step(self):
        modes.append(Reading())
        modes[-1].__enter__()
        begin(self)

    def end_step(self, control):
        end(self, control)
        modes[-1].__exit__(None, None, None)
        steps.append(modes[-1].found)

    monkeypatch.setattr(Loop, "begin_step", begin_step)
    monkeypatch.setattr(Loop, "end_step", end_step)

    def found(*overrides: str) -> list[Counter[str]]:
        steps.clear()
        carry_out(*LOOP, "machine.log_every=1000", "train.eval_every=1000", *overrides)
        return steps[:]

    return found


FIRST = dict(reversed(METHODS.values()))  # the first settings of every file in conf/variant
OURS, THEIRS = 1, 1  # the gradients' norm; transformers looks whether the batch has any padding

# What these read in every step beyond that, all of which stands on the device: whether gates, values or masks of a
# layer are zero (its rank), scores, or places that move.
READ_MORE = {"adalora", "elalora", "increlora", "peft_adalora", "sora", "sparse", "spiel", "svdiff", "svft"}
DRAWS = {"dylora"}  # its rank, a number, of the host's generator


@pytest.mark.parametrize("name", sorted(set(FIRST) - READ_MORE - DRAWS))
def test_a_step_between_two_logs_waits_for_the_device_once(name, reads_of_a_step):
    first, *between, last = reads_of_a_step(*FIRST[name])
    quiet = [step for step in between if step.total() <= OURS + THEIRS]
    # A mask is chosen in one step, of all.
    assert len(quiet) >= len(between) - 1 and all(step == {"item": OURS + THEIRS} for step in quiet)
    assert last["item"] > first["item"]  # read at the end: what the steps between had put by
