"""Hard-concrete gates: numbers in [0, 1] that can be exactly 0 and still have a gradient.

    z = min(1, max(0, (h − l) sigmoid(log u − log(1 − u) + a) + l))     u ~ U(0, 1), l < 0, h > 1
    P(z ≠ 0) = sigmoid(a − log(−l/h))                                    the L0 penalty of a gate
    without u, as in evaluation: z = min(1, max(0, (h − l) sigmoid(a) + l))

Source: Louizos, Welling and Kingma 2018, "Learning Sparse Neural Networks through L0 Regularization", arXiv 1712.01312,
with temperature 1, as in the code of diff pruning; theirs is 2/3.
"""

from __future__ import annotations

import math

import torch

EDGE = 1e-4  # u lies between it and 1 − it


def noise(like: torch.Tensor) -> torch.Tensor:
    """Draw log u − log(1 − u), of the shape of `like`."""
    u = torch.empty_like(like).uniform_(EDGE, 1 - EDGE)
    return u.log() - (1 - u).log()


def gate(a: torch.Tensor, low: float, high: float, drawn: torch.Tensor | None = None) -> torch.Tensor:
    """Return z for the logits `a`. drawn: the result of `noise`; None in evaluation."""
    soft = (a if drawn is None else a + drawn).sigmoid()
    return (soft * (high - low) + low).clamp(0.0, 1.0)


def open_probability(a: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Return P(z ≠ 0) for the logits `a`."""
    return (a - math.log(-low / high)).sigmoid()
