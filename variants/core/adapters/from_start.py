"""Low-rank factors that start anywhere: what they start with is taken off again, so that ΔW starts at zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from variants.core.adapters.adapter import LowRank


class _OwnGradient(torch.autograd.Function):
    """The identity with a copied gradient: the gradient of `cat` is a view, which would keep the whole in memory."""

    @staticmethod
    def forward(ctx: Any, parameter: torch.Tensor) -> torch.Tensor:
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.clone()


class FromStart(LowRank):
    """ΔW = scale · (B A − B₀ A₀), with A₀ (r, in) and B₀ (out, r) not zero."""

    A0: torch.Tensor
    B0: torch.Tensor

    def __init__(self, base: nn.Module, scale: float, a: torch.Tensor, b: torch.Tensor) -> None:
        super().__init__(base, len(a), scale)
        self.register_buffer("A0", torch.empty_like(self.A), persistent=False)
        self.register_buffer("B0", torch.empty_like(self.B), persistent=False)
        self.set_start(a, b)

    @torch.no_grad()
    def set_start(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Set A, A₀ to `a` and B, B₀ to `b`."""
        for parameter, start, value in ((self.A, self.A0, a), (self.B, self.B0, b)):
            parameter.copy_(value)
            start.copy_(value)

    def factors(self) -> tuple[torch.Tensor, torch.Tensor, None]:
        # B A − B₀ A₀ = B (A − A₀) + (B − B₀) A₀: at the start both products are exactly zero.
        a, b = _OwnGradient.apply(self.A), _OwnGradient.apply(self.B)
        return torch.cat([a - self.A0, self.A0]), torch.cat([b, b - self.B0], 1), None

    @property
    def rank(self) -> int:
        return min(2 * self.A.shape[0], self.in_features, self.out_features)

    def closed_form(self) -> int:
        return self.A.shape[0] * self.cost
