"""LoRA: low-rank adaptation with a fixed rank.

    y = W x + (α/r) B A dropout(x)          A: r×in, kaiming-uniform(√5)    B: out×r, zero

Paper     Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685.
Code      microsoft/LoRA c4593f0, which initialises as above; the paper draws A from a normal.
rsLoRA    Kalajdzievski 2023, arXiv 2312.03732: scaling α/√r, so that large ranks still learn.
LoRA+     Hayou et al. 2024, arXiv 2402.12354: B learns `lr_ratio` times as fast as A.

Hooks     none: nothing changes in training but the parameters.
Cost      r(in + out) parameters and two products of that size in each adapted layer.
Known     The released GLUE numbers adapt query and value only, and start MRPC, RTE and STS-B
          from an MNLI checkpoint; they are not comparable with methods that don't.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from variants.core import fields, targets
from variants.core.adapter import LowRank, check_rank
from variants.core.variant import AdapterVariant, pattern_value

SCALINGS = {
    "lora": lambda alpha, rank: alpha / rank,
    "rslora": lambda alpha, rank: alpha / math.sqrt(rank),
}


@dataclass(kw_only=True)
class LoRA(AdapterVariant):
    """Fixed-rank LoRA.

    rank: of every adapted layer. alpha: numerator of the scaling. dropout: on the adapter's input.
    scaling: "lora" (α/r) or "rslora" (α/√r). lr_ratio: learning rate of B over that of A (LoRA+).
    rank_pattern, alpha_pattern: values for the layers whose names end in a key.
    """

    name: str = "lora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    scaling: str = "lora"
    lr_ratio: float = 1.0
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for field_name, rank in [("rank", self.rank), *(("rank_pattern", r) for r in self.rank_pattern.values())]:
            if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
                raise ValueError(f"{field_name}: {rank!r}, allowed: a whole number ≥ 1")
        for field_name, alpha in [("alpha", self.alpha), *(("alpha_pattern", a) for a in self.alpha_pattern.values())]:
            if not (isinstance(alpha, int | float) and math.isfinite(alpha) and alpha > 0):
                raise ValueError(f"{field_name}: {alpha!r}, allowed: a number > 0")
        fields.share(self, "dropout")
        fields.positive(self, "lr_ratio")
        fields.one_of(self, "scaling", tuple(SCALINGS))

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {"rank": 2},
            {"rank": 1, "dropout": 0.1, "lr_ratio": 4.0},
            {"rank": 4, "scaling": "rslora", "rank_pattern": {"fc1": 2}, "alpha_pattern": {"fc2": 3.0}},
        ]

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        found = self.select(model, head)
        for field_name, patterns in [("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)]:
            for pattern in patterns:
                if not any(targets.matches(name, pattern) for name in found):
                    raise ValueError(f"{field_name}: no adapted layer ends in {pattern!r}")
        for name, layer in found.items():
            check_rank(pattern_value(self.rank_pattern, name, self.rank), layer)

    def build(self, name: str, layer: nn.Module) -> LowRank:
        rank = pattern_value(self.rank_pattern, name, self.rank)
        alpha = pattern_value(self.alpha_pattern, name, self.alpha)
        return LowRank(layer, rank, SCALINGS[self.scaling](alpha, rank), self.dropout)

    def optimizer_options(self, name: str) -> Mapping[str, Any]:
        is_b = name.endswith(".B")
        return {"lr_scale": self.lr_ratio} if is_b and self.lr_ratio != 1.0 else {}
