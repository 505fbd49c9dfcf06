"""Sums over the processes of a run; in one process, or without a process group, nothing happens.

Every process sees a part of each batch and weighs its loss with that part's share, so that what belongs to the
whole batch is the sum over the processes. The trainer sums what is in `.grad`. A method that takes a gradient
elsewhere, with a hook of autograd, has one process's part of it and asks for the whole with `total`, at a place
that all processes pass in the same order.
"""

from __future__ import annotations

import torch
import torch.distributed as dist


def count() -> int:
    """Processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if count() > 1 else 0


def total(part: torch.Tensor) -> torch.Tensor:
    """The sum over the processes of `part`, which has one shape on all of them and is left as it is."""
    if count() == 1:
        return part
    found = part.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(found)
    return found
