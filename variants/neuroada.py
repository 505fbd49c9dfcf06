"""NeuroAda: in every output neuron's row of W the k largest entries are trained.

    y = (W + ΔW) x        ΔW trained at the k entries of each row with the largest score, zero at the start
    score = abs(W), or abs of the mean gradient of W over `batches` batches before training (GPS, variant=gps)

Paper     Zhang et al. 2025, "NeuroAda: Activating Each Neuron's Potential for Parameter-Efficient Fine-Tuning", EMNLP,
          arXiv 2510.18940. GPS: Zhang et al. 2024, "Gradient-based Parameter Selection for Efficient Fine-Tuning",
          CVPR, arXiv 2312.10136.
Code      FightingFighting/NeuroAda e084f0b, peft_type perCell_mag_add. Its gradient-based choice can't start as
          released.
Budget    `budget` replaces per_row: as even as integers allow. One entry more in each row of a layer costs `out`.
Family    sparse
Trains    k entries of each row of W
Changes   mask: chosen once, before training (gradient) or at the start
Checked   released code: test_neuroada test_every_number_of_the_released_code
Hooks     before_training  takes the gradients and chooses, for score gradient
Passes    none; with score gradient 1 step forward and backward before training (`batches`)
Cost      k · out parameters per layer; W + ΔW in each pass, as SHiRA. Score gradient: `batches` forward and backward
          passes before training, and one dense gradient of every adapted weight while they last.
Decay     values decay, towards the base model.
Known     The released code may train biases as well (`tune_bias`); here none is. Its form `_appr` adds a bias twice.
          GPS as published scores with a contrastive loss; here it is the task's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import field_checks, layers
from variants.core.adapters.sparse_delta import SparseDelta, check_finite
from variants.core.allocation.budget import spread
from variants.core.masks.scopes import Row
from variants.core.masks.sources import Gradient
from variants.core.passes import Passes
from variants.core.variant import AdapterVariant

SCORES = ("magnitude", "gradient")


@dataclass(kw_only=True)
class NeuroAda(AdapterVariant):
    """NeuroAda.

    per_row: k, at most the length of a row. score: "magnitude" of W, or of its "gradient" (GPS).
    batches: of a step each, whose gradients are averaged (gradient).
    budget: trained parameters, in place of per_row (`variants.core.allocation.budget`).
    """

    name: str = "neuroada"
    per_row: int = 1
    score: str = "magnitude"
    batches: int = 1
    budget: int | None = None

    adapters: dict[str, SparseDelta] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "per_row", "batches")
        field_checks.check_one_of(self, "score", SCORES)
        if self.score == "magnitude":
            field_checks.check_without_effect(self, "batches", "score: magnitude")
        field_checks.check_budget(self, "per_row")
        self._counts: dict[str, int] = {}  # entries of each row, by layer

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {"per_row": 2},
            {"per_row": 3, "score": "gradient", "batches": 2},
            {"budget": 101},
        ]

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        sizes = {name: layers.size(layer) for name, layer in self.select(model, head).items()}
        if self.budget is None:
            self._counts = {name: min(self.per_row, columns) for name, (_, columns) in sizes.items()}
            return
        costs, most = {n: rows for n, (rows, _) in sizes.items()}, {n: columns for n, (_, columns) in sizes.items()}
        self._counts = spread(costs, self.budget, most, least=0)

    def build(self, name: str, layer: nn.Module) -> SparseDelta:
        return SparseDelta(layer, self.chosen(name, layers.matrix(layer).detach()))

    def chosen(self, name: str, score: torch.Tensor) -> torch.Tensor:
        """Return the indices of the entries that are largest in their rows. score: (out, in)."""
        return Row().choose({name: score.abs()}, {name: (self._counts[name] * len(score), 1)})[name]

    @torch.no_grad()
    def before_training(self, passes: Passes[Any]) -> None:
        if self.score == "magnitude":
            return
        scores = Gradient(collect=self.batches).before_training(self.adapters, passes)
        check_finite(scores, "score: the gradient of {} is not finite")
        for name, adapter in self.adapters.items():
            adapter.set_indices(self.chosen(name, scores[name]))

    def state_dict(self) -> dict[str, Any]:
        return {"indices": {name: adapter.indices for name, adapter in self.adapters.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, adapter in self.adapters.items():
            adapter.set_indices(state["indices"][name])
