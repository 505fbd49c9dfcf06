"""SIFT: in every weight the entries with the largest gradient of the first batch are trained.

    k = ⌊density · entries⌋ + 1 entries of a layer with the largest abs(∂L/∂W), over `batches` batches before training
    y = (W + ΔW) x        ΔW trained at these, zero at the start

Paper     Song et al. 2023, "Sparse is Enough in Fine-tuning Pre-trained Large Language Models", ICML,
          arXiv 2312.11875.
Code      song-wx/SIFT 5bef8a0. There a step's update is added to W two forward passes later and the last one never,
          weight decay does nothing, and the first adapted weight sees its mask one batch late; here all entries of a
          step move at once. Its first batch chooses and is left out of training; here it chooses in a pass before it.
Budget    `budget` replaces density: exactly so many entries, by the layers' sizes.
Family    sparse
Trains    k entries of each W
Changes   mask: chosen once, before training
Checked   written out: test_sift test_the_mask_and_the_trajectory_are_those_of_dense_training_under_it
Hooks     before_training  takes the gradients and chooses
Passes    1 step forward and backward before training (`batches`)
Cost      k parameters, moments and indices per layer; W + ΔW in each pass, as SHiRA. `batches` forward and backward
          passes before training, and one dense gradient of every adapted weight while they last.
Decay     values decay, towards the base model.
Known     As `masked` with source gradient in scope tensor, but for the one entry more of each layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import field_checks, layers
from variants.core.adapters.sparse_delta import SparseDelta, check_finite, largest
from variants.core.allocation.budget import apportion
from variants.core.masks.sources import Gradient
from variants.core.passes import Passes
from variants.core.variant import AdapterVariant


@dataclass(kw_only=True)
class SIFT(AdapterVariant):
    """SIFT.

    density: fraction of a layer's entries. batches: of a step each, whose gradients are summed.
    budget: trained parameters, in place of density (`variants.core.allocation.budget`).
    """

    name: str = "sift"
    density: float = 0.008
    batches: int = 1
    budget: int | None = None

    adapters: dict[str, SparseDelta] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "batches")
        field_checks.check("density", self.density, 0 < self.density < 1, "0 < density < 1")
        field_checks.check_budget(self, "density")
        self._counts: dict[str, int] = {}  # entries by layer

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [{"density": 0.2}, {"budget": 101, "batches": 2}]

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        sizes = {name: math.prod(layers.size(layer)) for name, layer in self.select(model, head).items()}
        if self.budget is None:
            self._counts = {name: int(self.density * size) + 1 for name, size in sizes.items()}
        else:
            self._counts = apportion(sizes, self.budget, sizes)

    def build(self, name: str, layer: nn.Module) -> SparseDelta:
        return SparseDelta(layer, torch.arange(self._counts[name]))  # until gradients have chosen

    @torch.no_grad()
    def before_training(self, passes: Passes[Any]) -> None:
        scores = Gradient(collect=self.batches).before_training(self.adapters, passes)
        check_finite(scores, "batches: the gradient of {} is not finite")
        for name, adapter in self.adapters.items():
            adapter.set_indices(largest(scores[name], self._counts[name]))

    def state_dict(self) -> dict[str, Any]:
        return {"indices": {name: adapter.indices for name, adapter in self.adapters.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, adapter in self.adapters.items():
            adapter.set_indices(state["indices"][name])
