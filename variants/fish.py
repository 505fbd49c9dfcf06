"""FISH mask: the entries with the largest Fisher information are trained, chosen before training.

    F_j = Σ over `samples` training rows of (∂ℓ/∂θ_j)²              ℓ: the row's loss (empirical)
    F_j = Σ rows Σ_c p_c (∂(−log p_c)/∂θ_j)²                        p: the model's own probabilities (true)
    the k entries with the largest F, of all weights and biases together, are trained; all others keep their values

Paper     Sung, Nair and Raffel 2021, "Training Neural Networks with Fixed Sparse Masks", NeurIPS, arXiv 2111.09839.
Code      varunnair18/FISH b5bff1e: mask_method label-square, as in its script; label-absolute is its parser's default.
Budget    `budget` replaces density: exactly so many entries.
Family    sparse
Trains    k entries of weights and biases
Changes   mask: chosen once, before training
Checked   released code: test_fish test_trajectory_of_the_released_code, test_importances_and_masks_of_the_released_code
Hooks     before_training  takes the gradients and chooses
Passes    1,024 rows forward and backward before training (`samples`), one by one
Cost      one forward and backward pass for each of `samples` rows (true: one for each class, and one more), and F for
          every entry while they last. Then k trained entries and their indices; the gradient is computed at the entries
          if that is cheaper, densely otherwise.
Decay     values at entries of weights decay, towards the base model; those of biases do not. In the released code decay
          moves all entries, masked ones too, towards zero; its scripts set none.
Known     The paper's mask covers embeddings, norms and the head, which is trained whole and counted in its budget. Here
          it covers the layers in `targets`, and the head is never counted. An exported low-rank adapter can't hold
          biases; merge instead, or set `biases: false`. Rows are the first of the training order, in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import field_checks, layers
from variants.core.adapters.biased_delta import BiasedDelta, biases
from variants.core.adapters.sparse_delta import check_finite, largest_of_groups
from variants.core.allocation.budget import apportion
from variants.core.masks.sources import fisher
from variants.core.passes import Passes
from variants.core.variant import AdapterVariant

FISHERS = ("empirical", "true")
MEASURES = ("square", "absolute")


@dataclass(kw_only=True)
class FISH(AdapterVariant):
    """FISH mask.

    density: k as a fraction of the entries of all adapted layers. biases: whether biases are among them.
    samples: rows whose gradients are summed. fisher: "empirical" (of the loss) or "true" (of the model's own classes).
    measure: "square" of a gradient, or "absolute" value.
    budget: trained parameters, in place of density (`variants.core.allocation.budget`).
    """

    name: str = "fish"
    density: float = 0.005
    biases: bool = True
    samples: int = 1024
    fisher: str = "empirical"
    measure: str = "square"
    budget: int | None = None

    adapters: dict[str, BiasedDelta] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "samples")
        field_checks.check("density", self.density, 0 < self.density <= 1, "0 < density ≤ 1")
        field_checks.check_one_of(self, "fisher", FISHERS)
        field_checks.check_one_of(self, "measure", MEASURES)
        field_checks.check_budget(self, "density")
        self._counts: dict[str, int] = {}  # entries by layer until the mask is chosen
        self._total = 0

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {"density": 0.2, "samples": 10},
            {"density": 0.3, "samples": 5, "fisher": "true", "measure": "absolute", "biases": False},
            {"budget": 101, "samples": 8},
        ]

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        weights = {name: layers.matrix(layer).numel() for name, layer in self.select(model, head).items()}
        all_biases = sum(biases(layer, self.biases) for layer in self.select(model, head).values())
        size = sum(weights.values()) + all_biases
        self._total = int(size * self.density) if self.budget is None else self.budget
        if self._total > size:
            raise ValueError(f"budget: {self._total} parameters, allowed for these targets: 1 … {size}")
        if not self._total:
            raise ValueError(f"density: {self.density} keeps none of {size} entries, allowed: at least 1/{size}")
        self._counts = apportion(weights, min(self._total, sum(weights.values())), weights)
        if rest := self._total - sum(self._counts.values()):
            raise ValueError(f"density: {self.density} is all weights and {rest} biases, allowed: fewer entries")

    def build(self, name: str, layer: nn.Module) -> BiasedDelta:
        return BiasedDelta(layer, torch.arange(self._counts[name]), torch.arange(0))  # until gradients have chosen

    @torch.no_grad()
    def before_training(self, passes: Passes[Any]) -> None:
        information = self.information(passes)
        check_finite(information, "fisher: the gradient of {} is not finite")
        names = list(information)
        (chosen,) = largest_of_groups([[information[name].flatten() for name in names]], [self._total])
        at = dict(zip(names, chosen, strict=True))
        for name, adapter in self.adapters.items():
            adapter.hold_both(at[name], at.get(f"{name}.bias", at[name][:0]))

    def information(self, passes: Passes[Any]) -> dict[str, torch.Tensor]:
        """Return F of every weight (out, in) by layer, and of every bias that takes part by "layer.bias"."""
        counts = {name: biases(adapter.base, self.biases) for name, adapter in self.adapters.items()}
        size = torch.square if self.measure == "square" else torch.abs
        true = "fisher: true" if self.fisher == "true" else None
        return fisher(self.adapters, passes, self.samples, true=true, biases=counts, size=size)

    def decays(self, name: str) -> bool:
        return not name.endswith(".bias_values")

    def state_dict(self) -> dict[str, Any]:
        return {
            "indices": {name: adapter.indices for name, adapter in self.adapters.items()},
            "bias_indices": {name: adapter.bias_indices for name, adapter in self.adapters.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, adapter in self.adapters.items():
            adapter.hold_both(state["indices"][name], state["bias_indices"][name])
