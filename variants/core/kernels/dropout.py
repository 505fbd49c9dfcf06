"""Dropout's random bits: sixteen for every entry, and cheap on a CPU.

Entries are kept independently with probability 1 − p, p being what was asked for, rounded to 2⁻¹⁶. Sixteen bits decide
an entry: a quarter of the draws that a float for each would take. Torch's own generator on a CPU takes about as long
for them as a thin product does; there it seeds a faster one (SFC64, as NumPy has it), once for every call, so that
`torch.manual_seed` decides all. Their seed is also all that is needed to draw the same bits again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

_LEVELS = 2**16
_SEED_WORDS = 2  # of 64 bits each


class Drawn(NamedTuple):
    """Dropout keeps the entries of x where `bits(source, x.shape)` is ≥ least, scaled by up.

    up is 1/(1 − p) of the rounded p, so that the mean is exact.
    """

    source: torch.Tensor
    least: int
    up: float


def draw(x: torch.Tensor, p: float, *, seed_alone: bool = False) -> Drawn:
    """What decides which entries of x are kept.

    seed_alone: the source is a seed of two numbers instead of the bits themselves; only on a CPU, elsewhere it would
    have to be read off the device.
    """
    dropped = round(p * _LEVELS)
    if _by_numpy(x):
        source = _words(_SEED_WORDS, x.device)
        source = source if seed_alone else bits(source, x.shape)
    else:
        source = _words((x.numel() + 3) // 4, x.device).view(torch.int16)[: x.numel()].view(x.shape)
    return Drawn(source, dropped - _LEVELS // 2, _LEVELS / (_LEVELS - dropped))


def bits(source: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The bits, int16 of `shape`, of what `draw` gave."""
    if source.dtype == torch.int16:
        return source
    if isinstance(source, FakeTensor):
        return source.new_empty(shape, dtype=torch.int16)
    count = shape.numel()
    generator = np.random.SFC64(source.numpy().view(np.uint32))
    words = torch.from_numpy(generator.random_raw((count + 3) // 4).view(np.int16))
    return words[:count].view(shape)


def mask(source: torch.Tensor, least: int, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """1 where an entry is kept, else 0, in a new tensor.

    Compared straight into that dtype and multiplied with: a quarter of what a bool mask and `torch.where` take
    on a CPU, where neither runs through vector instructions.
    """
    return torch.ge(bits(source, shape), least, out=torch.empty(shape, dtype=dtype, device=source.device))


def drop(x: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    """x̃, with what has been drawn for x. The backward pass needs nothing but the source."""
    dropped: torch.Tensor = _Drop.apply(x, *drawn)
    return dropped


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, source: torch.Tensor, least: int, up: float) -> torch.Tensor:
        ctx.least, ctx.up = least, up
        ctx.save_for_backward(source)
        return mask(source, least, x.shape, x.dtype).mul_(x).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (source,) = ctx.saved_tensors
        return mask(source, ctx.least, grad.shape, grad.dtype).mul_(grad).mul_(ctx.up), None, None, None


def _by_numpy(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()  # it can't be compiled


def _words(count: int, device: torch.device) -> torch.Tensor:
    # All but the last of 2⁶⁴ values; `random_` would give that one too, but can't be compiled.
    return torch.randint(-(2**63), 2**63 - 1, (count,), device=device)
