"""DropLoRA: LoRA with dropout between A and B, so that another part of the ranks trains at every token.

    y = W x + (α/r) B drop(A x)          A: r×in, kaiming-uniform(√5)    B: out×r, zero
    drop sets each of the r numbers of each token to zero with probability `rank_dropout`, and divides by the rest

Nothing is removed: in evaluation the layer is LoRA's, of full rank.

Paper     Zhang 2025, "DropLoRA: Sparse Low-Rank Adaptation for Parameter-Efficient Fine-Tuning", arXiv 2508.17337.
Code      TayeeChang/DropLoRA 25fdf58 (PEFT 0.14, forked): probability 0.5 by default, 0.2 to 0.4 in its scripts.
Budget    `budget` replaces rank: ranks as even as integers allow.
Family    low rank
Trains    A and B
Changes   nothing
Checked   written out: test_droplora test_training_written_out
Hooks     none: only the parameters change in training.
Cost      r(in + out) parameters per layer and r random numbers for each token.
Decay     A and B decay.
Known     The released code's learnable mask over the ranks (`dynamic_pruning`) is not here. The paper's text was not
          compared. Not the LoRA-drop of arXiv 2402.07721, in which layers share one LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from variants.core import field_checks
from variants.core.adapters.adapter import LowRank
from variants.core.allocation import budget
from variants.core.kernels import dropout as dropouts
from variants.core.variant import AdapterVariant


class RankDropped(LowRank):
    """ΔW = scale · B A, with dropout between A and B in training. rank_dropout: its probability."""

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float, rank_dropout: float) -> None:
        super().__init__(base, rank, scale, dropout)
        self.rank_dropout = rank_dropout

    @property
    def recomputes(self) -> bool:
        return True  # the bits of what is dropped

    def product(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().product(x, weight)
        y = F.linear(x, weight, self.layer_kind.layer.bias)
        return y + self.update(x).to(y.dtype)

    def apply_factors(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self._scaled_factors()
        h = self.layer_kind.project(x, a)
        if self.training:
            h = dropouts.drop(h, self.draw(h, self.rank_dropout))
        return self.layer_kind.expand(h, b)


@dataclass(kw_only=True)
class DropLoRA(AdapterVariant):
    """DropLoRA.

    rank, alpha, dropout: as in LoRA. rank_dropout: probability with which one of the r numbers of a token is dropped.
    budget: trained parameters, in place of rank (`variants.core.allocation.budget`).
    """

    same_in_batches: ClassVar[bool] = False  # what is dropped is drawn for each batch

    name: str = "droplora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    rank_dropout: float = 0.5
    budget: int | None = None

    adapters: dict[str, RankDropped] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank")
        field_checks.check_positive(self, "alpha", "rank_dropout")
        field_checks.check_fraction(self, "dropout", "rank_dropout")
        field_checks.check_budget(self, "rank")
        self._ranks: dict[str, int] = {}

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [{"rank": 4}, {"rank": 3, "rank_dropout": 0.25, "dropout": 0.1}, {"budget": 150, "rank_dropout": 0.2}]

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        self._ranks = budget.even_ranks(self.select(model, head), self.rank, self.budget)

    def build(self, name: str, layer: nn.Module) -> RankDropped:
        rank = self._ranks[name]
        return RankDropped(layer, rank, self.alpha / rank, self.dropout, self.rank_dropout)
