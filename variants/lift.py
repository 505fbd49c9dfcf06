"""LIFT: the entries in which the low-rank part of W is largest are trained, and chosen anew from time to time.

    score = abs(U_r S_r V_rᵀ)       the r = `filter_rank` leading singular triplets of the weight as it is now
    the k = `rank` (in + out) entries of a layer with the largest scores are trained
    every `interval` steps they are chosen anew; an entry that leaves keeps its value, one that stays keeps its moments

Paper     Liu et al. 2025, "LIFT the Veil for the Truth: Principal Weights Emerge after Rank Reduction for
          Reasoning-Focused Supervised Fine-Tuning", ICML, arXiv 2506.00772.
Code      zihanghliu/LIFT c4a679d, src/sparseAdam.py. Its scripts pass mask_type lift_sparse, which selects the smallest
          scores (profile released): only a name with "largest" in it selects the paper's.
Budget    `budget` replaces rank: exactly so many entries, divided among layers in proportion to in + out.
Family    sparse
Trains    k entries of each W
Changes   mask: chosen anew every `interval` steps
Checked   released code: test_lift test_every_number_of_the_released_code
Hooks     on_update  chooses anew
Cost      k parameters and moments per layer, and W + ΔW in each pass, as SHiRA. From the first change on ΔW is kept as
          a second matrix beside W, and one more sum forms W + ΔW. A singular value decomposition of every adapted
          weight at the start and at every change.
Decay     values decay, towards the base model, as long as they are trained. In the released code decay does nothing.
Known     As in the released code the first change comes a step early, after step `interval` − 1. The number of trained
          parameters is constant, but more entries of W change: `report` has their number. AdamW of the released code
          adds ε = 1e-6 before the bias correction. Its step count goes on for entries that are new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from variants.core import field_checks, layers
from variants.core.adapters.drifting_delta import DriftingDelta
from variants.core.adapters.sparse_delta import largest
from variants.core.allocation.budget import apportion
from variants.core.masks.sources import LowRankPart
from variants.core.variant import AdapterVariant, Step

SIGNS = {"paper": 1.0, "released": -1.0}  # of the scores, by profile


@dataclass(kw_only=True)
class LIFT(AdapterVariant):
    """LIFT.

    rank: k = `rank` (in + out) entries of each layer. filter_rank: r, at most the smaller side of a layer.
    interval: steps between two choices. profile: "paper" trains the largest scores, "released" the smallest.
    budget: trained parameters, in place of rank (`variants.core.allocation.budget`).
    """

    unpredicted: ClassVar[str] = "a dense sum of each layer after entries have moved"

    name: str = "lift"
    rank: int = 8
    filter_rank: int = 32
    interval: int = 400
    profile: str = "paper"
    budget: int | None = None

    adapters: dict[str, DriftingDelta] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank", "filter_rank")
        field_checks.check_int(self, "interval", at_least=2)
        field_checks.check_one_of(self, "profile", tuple(SIGNS))
        field_checks.check_budget(self, "rank")
        self._source = LowRankPart(filter_rank=self.filter_rank)
        self._counts: dict[str, int] = {}  # entries by layer

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {"rank": 1, "filter_rank": 2, "interval": 4},
            {"rank": 2, "filter_rank": 3, "interval": 100, "profile": "released"},
            {"budget": 101, "filter_rank": 1, "interval": 3},
        ]

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        sizes = {name: layers.size(layer) for name, layer in self.select(model, head).items()}
        self._source.check(sizes)
        entries = {name: rows * columns for name, (rows, columns) in sizes.items()}
        if self.budget is None:
            self._counts = {name: min(self.rank * sum(size), entries[name]) for name, size in sizes.items()}
        else:
            self._counts = apportion({name: sum(size) for name, size in sizes.items()}, self.budget, entries)

    def build(self, name: str, layer: nn.Module) -> DriftingDelta:
        return DriftingDelta(layer, self.chosen(layers.matrix(layer).detach(), self._counts[name]))

    def chosen(self, weight: torch.Tensor, count: int) -> torch.Tensor:
        """Return the indices (count,) of the entries that are trained. weight: (out, in), as it is now."""
        if weight.is_meta:
            return torch.arange(count, device=weight.device)
        return largest(SIGNS[self.profile] * self._source.of_weight("", weight), count)

    @torch.no_grad()
    def on_update(self, step: Step) -> None:
        if (step.index + 1) % self.interval or step.index == step.total:
            return
        for name, adapter in self.adapters.items():
            now = adapter.layer_kind.matrix.to(adapter.values.dtype) + adapter.dense()
            adapter.move(self.chosen(now, self._counts[name]), step.optimizer)

    def needs_whole_weights(self) -> str | None:
        return f"filter_rank: {self.filter_rank}"

    def report(self) -> dict[str, float]:
        return {"changed_entries": sum(len(adapter.changed()) for adapter in self.adapters.values())}

    def state_dict(self) -> dict[str, Any]:
        return {"entries": {name: adapter.saved() for name, adapter in self.adapters.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, adapter in self.adapters.items():
            adapter.take_up(state["entries"][name])
