"""Dropout's random bits: sixteen for every entry, and cheap on a CPU.

Entries are kept independently with probability 1 − p, p being what was asked for, rounded to 2⁻¹⁶. Sixteen bits decide
an entry: a quarter of the draws that a float for each would take. Torch's own generator on a CPU takes about as long
for them as a thin product does; there it seeds a faster one (SFC64, as NumPy has it), once for every call, so that
`torch.manual_seed` decides all. Their seed is also all that is needed to draw the same bits again.
"""

from __future__ import annotations

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor

_LEVELS = 2**16
_SEED_WORDS = 2  # of 64 bits each


def draw(x: torch.Tensor, p: float, *, seed_alone: bool = False) -> tuple[torch.Tensor, int, float]:
    """(source, least, up): dropout keeps the entries of x where `bits(source, x.shape)` is ≥ least, scaled by up.

    up is 1/(1 − p) of the rounded p, so that the mean is exact. seed_alone: the source is a seed of two numbers
    instead of the bits themselves; only on a CPU, elsewhere it would have to be read off the device.
    """
    dropped = round(p * _LEVELS)
    if _by_numpy(x):
        source = _words(_SEED_WORDS, x.device)
        source = source if seed_alone else bits(source, x.shape)
    else:
        source = _words((x.numel() + 3) // 4, x.device).view(torch.int16)[: x.numel()].view(x.shape)
    return source, dropped - _LEVELS // 2, _LEVELS / (_LEVELS - dropped)


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


def _by_numpy(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()  # it can't be compiled


def _words(count: int, device: torch.device) -> torch.Tensor:
    # All but the last of 2⁶⁴ values; `random_` would give that one too, but can't be compiled.
    return torch.randint(-(2**63), 2**63 - 1, (count,), device=device)
