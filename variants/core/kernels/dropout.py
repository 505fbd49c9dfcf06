"""Dropout with sixteen random bits for every entry, which are cheap to draw on a CPU.

Entries are kept independently with probability 1 − p, where p is rounded to 2⁻¹⁶. Sixteen bits per entry are a quarter
of the random numbers that a float per entry would take. On a CPU torch's generator takes about as long for them as a
low-rank product; there it only seeds a faster generator (NumPy's SFC64), once for every call, so `torch.manual_seed`
determines all draws. The seed is also sufficient to draw the same bits again.
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
    """A draw for x: dropout keeps the entries where `bits(source, x.shape)` ≥ least, and multiplies them by up.

    up is 1/(1 − p) of the rounded p, so that the mean is exact.
    """

    source: torch.Tensor
    least: int
    up: float


def draw(x: torch.Tensor, p: float, *, seed_alone: bool = False) -> Drawn:
    """Draw which entries of x are kept, each with probability 1 − p.

    seed_alone: the source is a seed of two numbers instead of the bits; on a CPU only, because elsewhere the seed would
    have to be read from the device.
    """
    dropped = round(p * _LEVELS)
    if _by_numpy(x):
        source = _words(_SEED_WORDS, x.device)
        source = source if seed_alone else bits(source, x.shape)
    else:
        source = _words((x.numel() + 3) // 4, x.device).view(torch.int16)[: x.numel()].view(x.shape)
    return Drawn(source, dropped - _LEVELS // 2, _LEVELS / (_LEVELS - dropped))


def bits(source: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return the bits of a draw's source, int16 of `shape`."""
    if source.dtype == torch.int16:
        return source
    if isinstance(source, FakeTensor):
        return source.new_empty(shape, dtype=torch.int16)
    count = shape.numel()
    generator = np.random.SFC64(source.numpy().view(np.uint32))
    words = torch.from_numpy(generator.random_raw((count + 3) // 4).view(np.int16))
    return words[:count].view(shape)


def mask(source: torch.Tensor, least: int, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Return a new tensor with 1 for kept entries and 0 for dropped ones.

    Comparing directly into `dtype` and multiplying takes a quarter of the time of a bool mask and `torch.where` on a
    CPU, where these are not vectorised.
    """
    return torch.ge(bits(source, shape), least, out=torch.empty(shape, dtype=dtype, device=source.device))


def drop(x: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    """Return x̃ for a draw for x. The backward pass needs only the source."""
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
    return x.device.type == "cpu" and not torch.compiler.is_compiling()  # NumPy calls can't be compiled


def _words(count: int, device: torch.device) -> torch.Tensor:
    # All of the 2⁶⁴ values but the last; `random_` would include it, but can't be compiled.
    return torch.randint(-(2**63), 2**63 - 1, (count,), device=device)
