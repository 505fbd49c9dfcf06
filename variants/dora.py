"""DoRA: a weight is decomposed into magnitude and direction; LoRA updates the direction, the magnitude is trained.

    W' = m ∘ V/‖V‖        V = W + (α/r) B A        ‖·‖: norm of every row, over the inputs of one output
    y = W' x + bias       m: (out,), ‖W‖ at the start    A: r×in, kaiming-uniform(√5)    B: zero
    the gradient treats ‖V‖ as constant, although its value follows V

    computed as y = g ∘ (W x + bias + (α/r) B A x) + (1 − g) ∘ bias        g = m/‖V‖, one at the start

Paper     Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", ICML, arXiv 2402.09353: equation 5,
          the constant norm in section 4.3. Not the "dynamic rank distribution" of the same name (ACL 2024).
Code      PEFT 0.21.2, `use_dora`.
Budget    `budget` replaces rank: r(in + out) + out parameters per layer, ranks as even as integers allow.
Family    low rank
Trains    A, B and a magnitude of each output
Changes   nothing
Checked   stored run of PEFT: test_dora test_every_number_of_the_stored_run; PEFT: test_dora test_trajectory_of_peft
Hooks     none: only the parameters change in training.
Cost      r(in + out) + out parameters. ‖V‖² = ‖W‖² + 2 (α/r) W Aᵀ·B + (α/r)² B (A Aᵀ)·B is computed row by row in
          every pass, with one product W Aᵀ and without forming V or ΔW. The term in brackets is LoRA's layer
          (`core.kernels.low_rank`), but its output is saved for the backward pass, unlike in LoRA. With dropout y is
          W x + bias + (α/r) (g ∘ B) A x̃ + (g − 1) ∘ W x̃, as in PEFT: a second product W x̃, which is saved.
Decay     A and B decay, as in LoRA. `magnitude_decay` is the weight decay of m, independent of the run's. In PEFT m is
          an adapter parameter like the others: if all share a group, the decay pulls m, and therefore W' and not ΔW,
          towards zero.

Known     ΔW = W' − W is W times a diagonal plus a low-rank matrix: it has full rank as soon as g differs from one, and
          `rank` reports this; no LoRA of rank r equals it. A weight with a row of zeros has no direction there and is
          refused. Under a validation/test protocol 87.61 vs. LoRA's 87.30 at rank 8, with 5.8 vs. 4.5 GB (PSOFT, ICLR
          2026, DeBERTaV3-base).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from variants.core import field_checks, layers
from variants.core.adapters.adapter import Adapter, check_rank
from variants.core.allocation import budget
from variants.core.kernels import dropout as dropouts
from variants.core.kernels.low_rank import low_rank_linear
from variants.core.variant import AdapterVariant


class Decomposed(Adapter):
    """W' = magnitude ∘ V/‖V‖ with V = W + scale · B A; magnitude (out,), A (r, in), B (out, r) are trained."""

    squares: torch.Tensor

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float) -> None:
        super().__init__(base)
        if dropout and not self.layer_kind.takes_dropout:
            raise ValueError(f"dropout: {dropout} on a {type(base).__name__}, allowed: 0; its input is an index")
        device, dtype = self.weight.device, torch.promote_types(self.weight.dtype, torch.float32)
        self.A = nn.Parameter(torch.empty((rank, self.in_features), device=device, dtype=dtype))
        self.B = nn.Parameter(torch.zeros((self.out_features, rank), device=device, dtype=dtype))
        nn.init.kaiming_uniform_(self.A, a=5**0.5)
        self.scale, self.dropout = scale, dropout
        self.register_buffer("squares", self.frozen().square().sum(1), persistent=False)  # ‖W‖², (out,)
        self.magnitude = nn.Parameter(self.norm())

    def frozen(self) -> torch.Tensor:
        """Return W (out, in) in the adapter's dtype, also while ΔW is merged into the layer's weight."""
        weight = self.weight if self._original is None else self._original
        return self.layer_kind.as_matrix(weight).to(self.A.dtype)

    @torch.no_grad()
    def norm(self) -> torch.Tensor:
        """Return ‖V‖ of every row (out,), without gradient."""
        with torch.autocast(self.A.device.type, enabled=False):
            b = self.B * self.scale
            change = self.frozen() @ self.A.T * 2 + b @ (self.A @ self.A.T)
            return (self.squares + (change * b).sum(1)).clamp(min=0).sqrt()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.merged or not self._enabled:
            return self.base.forward(x)
        bias = getattr(self.base, "bias", None)
        if self.dropout and self.training:
            return self._forward_with_dropout(x, bias) if self.layer_kind.is_product else super().forward(x)
        if self.layer_kind.is_product:
            matrix = self.layer_kind.matrix
            direction = low_rank_linear(x, matrix, bias, self.A, self.B, scale=self.scale, kernel=self.kernel)
            ratio = self.magnitude / self.norm()
            rest = ratio.new_zeros(()) if bias is None else (1 - ratio) * bias
            return torch.addcmul(rest, ratio, direction).to(direction.dtype)  # in the precision of m: g is near one
        y = self.base.forward(x)
        plain = y if bias is None else y - self.layer_kind.over_output(bias)
        return y + self._update_given(x, plain).to(y.dtype)

    def _forward_with_dropout(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return W x + bias + (g − 1) ∘ W x̃ + g ∘ scale · B A x̃, for a layer that is a matrix product."""
        drawn, matrix, ratio = self.draw(x, self.dropout), self.layer_kind.matrix, self.magnitude / self.norm()
        b = ratio[:, None] * self.B
        y = low_rank_linear(x, matrix, bias, self.A, b, scale=self.scale, dropout=drawn, kernel=self.kernel)
        return torch.addcmul(y, ratio - 1, F.linear(dropouts.drop(x, drawn), matrix)).to(y.dtype)

    @property
    def recomputes(self) -> bool:
        return self.dropout > 0 or self.layer_kind.is_product

    def update(self, x: torch.Tensor) -> torch.Tensor:
        if x.is_floating_point():
            x = x.to(self.A.dtype)
            if self.dropout and self.training:
                x = dropouts.drop(x, self.draw(x, self.dropout))
        return self._update_given(x, self.layer_kind.apply(x, self.frozen()))

    def _update_given(self, x: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
        """Return ΔW x, given `plain` = W x."""
        if x.is_floating_point():
            x = x.to(self.A.dtype)
        ratio = self.layer_kind.over_output(self.magnitude / self.norm())
        low_rank = self.layer_kind.expand(self.layer_kind.project(x, self.A), self.B * self.scale)
        return (ratio - 1) * plain + ratio * low_rank

    def delta(self) -> torch.Tensor:
        frozen, ratio = self.frozen(), (self.magnitude / self.norm())[:, None]
        return ratio * (frozen + (self.B * self.scale) @ self.A) - frozen

    @property
    def rank(self) -> int:
        return min(self.in_features, self.out_features)

    def closed_form(self) -> int:
        return self.A.shape[0] * (self.in_features + self.out_features) + self.out_features

    def extra_repr(self) -> str:
        return f"rank={self.A.shape[0]}, scale={self.scale:g}, dropout={self.dropout:g}"


@dataclass(kw_only=True)
class DoRA(AdapterVariant):
    """Weight-decomposed LoRA.

    rank: r of every adapted layer. alpha: numerator of the scaling. dropout: on the adapter's input.
    magnitude_decay: weight decay of m, instead of the run's.
    budget: trained parameters at the end, in place of rank (`variants.core.allocation.budget`).
    """

    name: str = "dora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    magnitude_decay: float = 0.0
    budget: int | None = None

    adapters: dict[str, Decomposed] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank")
        field_checks.check_positive(self, "alpha")
        field_checks.check_fraction(self, "dropout")
        field_checks.check_not_negative(self, "magnitude_decay")
        field_checks.check_budget(self, "rank")
        self._ranks: dict[str, int] = {}  # r by layer

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [{"rank": 2}, {"rank": 3, "dropout": 0.1, "alpha": 4.0, "magnitude_decay": 0.01}, {"budget": 190}]

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        sizes = {name: layers.size(layer) for name, layer in self.select(model, head).items()}
        if self.budget is None:
            self._ranks = dict.fromkeys(sizes, self.rank)
            for layer in self.select(model, head).values():
                check_rank(self.rank, layer)
            return

        def price(name: str, rank: int) -> int:
            out_features, in_features = sizes[name]
            return rank * (in_features + out_features) + out_features

        self._ranks = budget.spread_priced(price, self.budget, {name: min(size) for name, size in sizes.items()})

    def build(self, name: str, layer: nn.Module) -> Decomposed:
        empty = int((~layers.matrix(layer).any(1)).sum())
        if empty:
            raise ValueError(
                f"targets: {name} has {empty} outputs whose weights are all zero, allowed: none, "
                "because they have no direction; exclude it"
            )
        rank = self._ranks[name]
        return Decomposed(layer, rank, self.alpha / rank, self.dropout)

    def optimizer_options(self, name: str) -> Mapping[str, Any]:
        return {"weight_decay": self.magnitude_decay} if name.endswith(".magnitude") else {}
