"""What a score is: how much a component or a layer matters. Allocators decide by scores (`allocators.py`).

A component i of a layer is a row A_i, a column B_i and, in the form of triplets, a number e_i: ΔW = s Σ_i e_i B_i A_i.
A score gives one number to each component (`per = "component"`), or one to a whole layer (`per = "layer"`).

A score of your own is a dataclass that derives from `Score` and defines `scores`, and `update` if it measures during
training. `variant.score=my_package.MyScore` takes it; its fields (`beta1`, `beta2`) are set by the variant's of the
same name. `@register("name")` gives it a short name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from variants.core.adapters.adapter import LowRank
from variants.core.field_checks import registrar
from variants.core.passes import Passes

Adapters = Mapping[str, LowRank]
Values = dict[str, torch.Tensor]

SCORES: dict[str, type[Score]] = {}
register = registrar(SCORES)


@dataclass(kw_only=True)
class Score:
    """A score, with its measurements by layer.

    per: "component" or "layer". at_start: whether one step's gradients tell something before any parameter has moved,
    when e or B is zero. even: whether it prefers no layer. of_trained: whether it rewrites the components, which only
    a finished training allows. diagonal: whether it reads e. weights: whether it reads base weights.
    """

    per: ClassVar[str] = "component"
    at_start: ClassVar[bool] = False
    even: ClassVar[bool] = False
    of_trained: ClassVar[bool] = False
    diagonal: ClassVar[bool] = False
    weights: ClassVar[bool] = False

    def hold_passes(self, passes: Passes[Any]) -> None:
        """Runs before the first step that is made, as the variant's hook of this name."""

    def watch(self, adapters: Adapters) -> None:
        """Runs before the forward passes of a step that will be measured."""

    def update(self, adapters: Adapters) -> None:
        """Measure a step, once its gradients are final. Layers without components have none."""

    def scores(self, adapters: Adapters) -> Values:
        """Return (r,) of every layer's components, or (1,) of every layer."""
        raise NotImplementedError(f"{type(self).__name__}.scores")

    def keep(self, name: str, index: torch.Tensor) -> None:
        """Keep the measurements of the components `index` (n,) of a layer whose others were removed."""

    def append(self, name: str, count: int) -> None:
        """Take in that the layer `name` has `count` new components, whose measurements start at zero."""

    def state_dict(self) -> dict[str, Any]:
        """Return the measurements. Raises `ValueError` if one is not finite."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
