"""What methods share that train in a basis of each weight's own directions: SVDiff, SVFT, LoRA-XS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import field_checks, layers
from variants.core.adapters.adapter import check_rank
from variants.core.adapters.singular_basis import InBasis
from variants.core.allocation.budget import spread_priced
from variants.core.decompositions import Factors, Rule, check_rule, decompose
from variants.core.state_files import CorruptState
from variants.core.variant import AdapterVariant


@dataclass(kw_only=True)
class BasisVariant(AdapterVariant):
    """A method that decomposes each target's weight, freezes the factors and trains in their basis.

    rank: directions of each layer, a rule (see the module's text). decomposition: the method.
    iterations: of the decomposition; null for its own number. seed: of all random draws that the basis needs.
    budget: replaces `rank` where the method says how many parameters a number of directions has.
    """

    rank: Rule = None
    decomposition: str = "svd"
    iterations: int | None = None
    seed: int = 0
    budget: int | None = None

    adapters: dict[str, InBasis] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.budget(self, "rank")
        # A budget decides on numbers of directions, which every decomposition takes.
        check_rule(self.decomposition, self.rank if self.budget is None else 1, self.iterations, self.seed)
        if not self.draws:
            field_checks.without_effect(self, "seed", f"decomposition: {self.decomposition}")
        self._fingerprints: dict[str, torch.Tensor] = {}
        self._rules: dict[str, Rule] = {}  # of the layers, by name

    @property
    def draws(self) -> bool:
        """Whether anything is drawn with `seed`."""
        return self.decomposition != "svd"

    def parameters(self, directions: int) -> int:
        """Trained parameters of a layer with that many directions."""
        return directions

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        found = self.select(model, head)
        self._rules = dict.fromkeys(found, self.rank)
        if self.budget is not None:
            self._rules |= self.choose({name: min(layers.size(layer)) for name, layer in found.items()}, self.budget)
        for name, layer in found.items():
            rule = self._rules[name]
            if isinstance(rule, int):
                check_rank(rule, layer)

    def choose(self, most: Mapping[str, int], parameters: int) -> Mapping[str, Rule]:
        """Directions by layer for a budget of `parameters`. most: the directions that a layer has."""
        return spread_priced(lambda name, directions: self.parameters(directions), parameters, most)

    def attach(self, model: nn.Module, head: Sequence[str] = ()) -> nn.Module:
        self.check(model, head)
        self._fingerprints = {}
        return super().attach(model, head)

    def factors(self, name: str, layer: nn.Module) -> Factors:
        """The basis of the layer `name`."""
        rule = self._rules[name]
        return decompose(layers.matrix(layer), self.decomposition, rule, iterations=self.iterations, seed=self.seed)

    def decompositions(self) -> dict[str, dict[str, float]]:
        """Of every layer: directions, relative error and explained energy of its decomposition."""
        return {
            name: {
                "directions": adapter.U.shape[1],
                "relative_error": adapter.relative_error,
                "explained": adapter.explained,
            }
            for name, adapter in self.adapters.items()
        }

    def report(self) -> dict[str, float]:
        """How well the bases carry the weights: mean directions, energy, mean and largest relative error."""
        found = self.decompositions().values()
        errors = [layer["relative_error"] for layer in found]
        energy = sum(float(adapter.form.matrix.square().sum()) for adapter in self.adapters.values())
        kept = sum(a.explained * float(a.form.matrix.square().sum()) for a in self.adapters.values())
        return {
            "decomposition.directions": sum(layer["directions"] for layer in found) / len(errors),
            "decomposition.explained": kept / energy,
            "decomposition.relative_error": sum(errors) / len(errors),
            "decomposition.largest_error": max(errors),
        }

    def state_dict(self) -> dict[str, Any]:
        if not self._fingerprints:  # found once: the basis never changes, and states are saved often
            self._fingerprints = {name: adapter.fingerprint() for name, adapter in self.adapters.items()}
        return {"basis": self._fingerprints}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # What was trained means nothing in another basis, and nothing else would tell.
        for name, found in self.state_dict()["basis"].items():
            saved = state["basis"].get(name)
            if saved is None:
                raise CorruptState(f"{name}: the state was trained without this layer")
            if not torch.allclose(saved, found, rtol=0, atol=1e-3):
                raise CorruptState(
                    f"{name}: its basis is not the one trained in (fingerprint {found.tolist()}, saved "
                    f"{saved.tolist()}); the base weight, `rank`, `decomposition` or `seed` differ"
                )
