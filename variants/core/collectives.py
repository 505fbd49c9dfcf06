"""Sums and random draws over the processes of a run; without a process group they do nothing.

Every process has a part of each batch and weights its loss by the part's fraction of the batch, so a gradient of the
whole batch is the sum over processes. A step (`variants.core.step`) sums the `.grad` of parameters. A method that takes
a gradient elsewhere, with an autograd hook, has one process's part and must call `all_reduce_sum` itself, in the same
order on all processes.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn


class Diverged(RuntimeError):
    """The processes have different parameters; one line that names the first difference."""


def count() -> int:
    """Return the number of processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if count() > 1 else 0


def all_reduce_sum(part: torch.Tensor) -> torch.Tensor:
    """Return the sum of `part` over the processes; it has the same shape on all of them and is not changed."""
    if count() == 1:
        return part
    whole = part.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(whole)
    return whole


def gather_rows(part: torch.Tensor) -> torch.Tensor:
    """Return the rows `part` (n, …) of all processes one after the other; n may differ between them."""
    if count() == 1:
        return part
    sizes = [torch.zeros(1, dtype=torch.int64, device=part.device) for _ in range(count())]
    dist.all_gather(sizes, torch.tensor([len(part)], device=part.device))
    lengths = [int(size) for size in sizes]
    padded = part.new_zeros((max(lengths), *part.shape[1:]))
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([rows[:length] for rows, length in zip(parts, lengths, strict=True)])


@torch.no_grad()
def sum_gradients(model: nn.Module) -> None:
    """Replace every gradient by its sum over the processes, with one all-reduce for each dtype.

    A missing gradient counts as zero, unless it is missing on all processes: then it stays None. Raises `Diverged` if
    the trained parameters have different shapes.
    """
    if count() == 1:
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    _refuse_other_shapes(parameters)
    for dtype in dict.fromkeys(p.dtype for p in parameters):
        some = [p for p in parameters if p.dtype == dtype]
        exists = torch.tensor([p.grad is not None for p in some], dtype=dtype, device=some[0].device)
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in some] + [exists])
        dist.all_reduce(flat)
        parts = flat[: -len(some)].split([p.numel() for p in some])
        for parameter, part, processes in zip(some, parts, flat[-len(some) :].tolist(), strict=True):
            # Not a view of `flat`: a gradient that is kept must not keep all others in memory.
            if parameter.grad is not None:
                parameter.grad.copy_(part.view_as(parameter))
            elif processes:
                parameter.grad = part.view_as(parameter).clone()


def _refuse_other_shapes(parameters: list[nn.Parameter]) -> None:
    text = repr([tuple(p.shape) for p in parameters]).encode()
    mine = int.from_bytes(hashlib.sha1(text, usedforsecurity=False).digest()[:7], "big")
    ends = torch.tensor([mine, -mine], device=parameters[0].device)
    dist.all_reduce(ends, dist.ReduceOp.MAX)
    if ends.tolist() != [mine, -mine]:
        raise Diverged("the trained parameters have different shapes on different processes")


@contextlib.contextmanager
def same_draws() -> Iterator[None]:
    """Context in which torch's generators give every process the numbers of the first one."""
    if count() == 1:
        yield
        return
    own = _generators()
    if rank() == 0:
        for state in own:
            dist.broadcast(state, 0)
        yield
        return
    shared = [state.clone() for state in own]
    for state in shared:
        dist.broadcast(state, 0)
    _set_generators(shared)
    try:
        yield
    finally:
        _set_generators(own)


def _generators() -> list[torch.Tensor]:
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *cuda]


def _set_generators(states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state)
