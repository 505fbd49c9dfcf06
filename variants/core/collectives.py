"""Sums and draws over the processes of a run; in one process, or without a process group, nothing happens.

Every process sees a part of each batch and weighs its loss with that part's share, so that what belongs to the
whole batch is the sum over the processes. A step (`variants.core.step`) sums what is in `.grad`. A method that takes a
gradient elsewhere, with a hook of autograd, has one process's part of it and asks for the whole with `total`, at a
place that all processes pass in the same order.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn


class Diverged(RuntimeError):
    """The processes don't hold the same parameters; one line that names the first that differs."""


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


@torch.no_grad()
def sum_gradients(model: nn.Module) -> None:
    """Puts the sum over the processes into every gradient: one all-reduce for each dtype.

    A parameter without a gradient on some processes counts as zero there; one without a gradient on all of them
    stays without. Raises `Diverged` where the trained parameters are not of the same shapes.
    """
    if count() == 1:
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    _refuse_other_shapes(parameters)
    for dtype in dict.fromkeys(p.dtype for p in parameters):
        some = [p for p in parameters if p.dtype == dtype]
        there = torch.tensor([p.grad is not None for p in some], dtype=dtype, device=some[0].device)
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in some] + [there])
        dist.all_reduce(flat)
        parts = flat[: -len(some)].split([p.numel() for p in some])
        for parameter, part, found in zip(some, parts, flat[-len(some) :].tolist(), strict=True):
            # Not a view of the whole: a part that is resized must not keep the rest.
            if parameter.grad is not None:
                parameter.grad.copy_(part.view_as(parameter))
            elif found:
                parameter.grad = part.view_as(parameter).clone()


def _refuse_other_shapes(parameters: list[nn.Parameter]) -> None:
    text = repr([tuple(p.shape) for p in parameters]).encode()
    mine = int.from_bytes(hashlib.sha1(text, usedforsecurity=False).digest()[:7], "big")
    ends = torch.tensor([mine, -mine], device=parameters[0].device)
    dist.all_reduce(ends, dist.ReduceOp.MAX)
    if ends.tolist() != [mine, -mine]:
        raise Diverged("the trained parameters have not the same shapes on all processes")


@contextlib.contextmanager
def same_draws() -> Iterator[None]:
    """Within it torch's generators give every process what they give the first, which draws as if it were alone."""
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
