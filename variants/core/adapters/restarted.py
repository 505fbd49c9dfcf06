"""Low-rank factors that are merged into ΔW and begin again: the rank of the sum grows."""

from __future__ import annotations

import torch
from torch import nn

from variants.core.adapters import svd
from variants.core.adapters.adapter import LowRank
from variants.core.kernels.low_rank import low_rank_linear


class Restarted(LowRank):
    """ΔW = past + scale · B A, where `past` (out, in) is the sum of earlier products, None before the first merge.

    rounds: number of products in `past`.
    """

    past: torch.Tensor | None

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base, rank, scale, dropout)
        self.rounds = 0
        self.register_buffer("past", None, persistent=False)

    @torch.no_grad()
    def restart(self, a: torch.Tensor) -> None:
        """Add scale · B A to `past`, set A (r, in) to `a` and B to zero. The output does not change."""
        product = self._scaled_factors()[1] @ self.A
        self.past = product if self.past is None else self.past + product
        self.A.copy_(a)
        self.B.zero_()
        self.rounds += 1

    def drawn(self) -> torch.Tensor:
        """Return a new A (r, in), kaiming-uniform(√5)."""
        return nn.init.kaiming_uniform_(torch.empty_like(self.A), a=5**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.past is None or self.merged or not self._enabled:
            return super().forward(x)
        if self.weight.dtype != self.past.dtype:  # above half precision the sum with W would round ΔW
            return self.base.forward(x) + self.update(x).to(self.weight.dtype)
        if self.layer_kind.is_product:
            matrix, bias = self.layer_kind.matrix + self.past, self.layer_kind.layer.bias
            if self.is_empty:
                return nn.functional.linear(x, matrix, bias)
            dropout = self.dropout if self.training else 0.0
            return low_rank_linear(x, matrix, bias, self.A, self.B, None, self.scale, dropout, self.kernel)
        y = self.layer_kind.forward_with(self.weight + self.layer_kind.as_weight(self.past), x)
        return y if self.is_empty else y + super().update(x).to(y.dtype)

    def update(self, x: torch.Tensor) -> torch.Tensor:
        if self.past is None:
            return super().update(x)
        whole = self.layer_kind.apply(x.to(self.past.dtype) if x.is_floating_point() else x, self.past)
        return whole if not len(self.A) else whole + super().update(x)

    @property
    def is_empty(self) -> bool:
        return len(self.A) == 0

    def delta(self) -> torch.Tensor:
        return super().delta() if self.past is None else super().delta() + self.past

    def as_product(self) -> svd.Product:
        return super().as_product() if self.past is None else svd.of_matrix(self.delta()).product()

    @property
    def rank(self) -> int:
        return min((self.rounds + 1) * len(self.A), self.in_features, self.out_features)

    def closed_form(self) -> int:
        return len(self.A) * self.cost

    def set_past(self, past: torch.Tensor | None, rounds: int) -> None:
        """Take up the sum (out, in) of `rounds` earlier products; None for no product."""
        self.past = None if past is None else past.to(self.A.device, self.A.dtype)
        self.rounds = rounds
