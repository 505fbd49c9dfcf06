"""The base class of methods that train in a basis of each weight's own directions."""

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

    rank: rule for the number of directions of each layer (see `variants.core.decompositions`).
    decomposition: its algorithm. iterations: of the decomposition; null for the algorithm's default.
    seed: of all random draws for the basis. budget: trained parameters, in place of rank.
    """

    rank: Rule = None
    decomposition: str = "svd"
    iterations: int | None = None
    seed: int = 0
    budget: int | None = None

    adapters: dict[str, InBasis] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_budget(self, "rank")
        # A budget results in numbers of directions, which every decomposition accepts.
        check_rule(self.decomposition, self.rank if self.budget is None else 1, self.iterations, self.seed)
        if not self.draws:
            field_checks.check_without_effect(self, "seed", f"decomposition: {self.decomposition}")
        self._fingerprints: dict[str, torch.Tensor] = {}
        self._rules: dict[str, Rule] = {}  # by layer

    @property
    def draws(self) -> bool:
        """Whether `seed` is used."""
        return self.decomposition != "svd"

    def parameters(self, directions: int) -> int:
        """Return the number of trained parameters of a layer with `directions` directions."""
        return directions

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        selected = self.select(model, head)
        self._rules = dict.fromkeys(selected, self.rank)
        if self.budget is not None:
            most = {name: min(layers.size(layer)) for name, layer in selected.items()}
            self._rules |= self.choose(most, self.budget)
        for name, layer in selected.items():
            rule = self._rules[name]
            if isinstance(rule, int):
                check_rank(rule, layer)

    def choose(self, most: Mapping[str, int], parameters: int) -> Mapping[str, Rule]:
        """Return the number of directions by layer for a budget of `parameters`. most: all directions, by layer."""
        return spread_priced(lambda name, directions: self.parameters(directions), parameters, most)

    def attach(self, model: nn.Module, head: Sequence[str] = ()) -> nn.Module:
        self.check(model, head)
        self._fingerprints = {}
        return super().attach(model, head)

    def factors(self, name: str, layer: nn.Module) -> Factors:
        """Return the basis of the layer `name`."""
        rule = self._rules[name]
        return decompose(layers.matrix(layer), self.decomposition, rule, iterations=self.iterations, seed=self.seed)

    def decompositions(self) -> dict[str, dict[str, float]]:
        """Return, for every layer, directions, relative error and explained energy of its decomposition."""
        return {
            name: {
                "directions": adapter.U.shape[1],
                "relative_error": adapter.relative_error,
                "explained": adapter.explained,
            }
            for name, adapter in self.adapters.items()
        }

    def report(self) -> dict[str, float]:
        """Return how well the bases approximate the weights: directions, energy, mean and largest relative error."""
        of_layers = self.decompositions().values()
        errors = [layer["relative_error"] for layer in of_layers]
        energy = sum(float(adapter.layer_kind.matrix.square().sum()) for adapter in self.adapters.values())
        kept = sum(a.explained * float(a.layer_kind.matrix.square().sum()) for a in self.adapters.values())
        return {
            "decomposition.directions": sum(layer["directions"] for layer in of_layers) / len(errors),
            "decomposition.explained": kept / energy,
            "decomposition.relative_error": sum(errors) / len(errors),
            "decomposition.largest_error": max(errors),
        }

    def state_dict(self) -> dict[str, Any]:
        if not self._fingerprints:  # computed once: the basis never changes, and states are saved often
            self._fingerprints = {name: adapter.fingerprint() for name, adapter in self.adapters.items()}
        return {"basis": self._fingerprints}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # Trained values mean nothing in another basis, and nothing else would detect that.
        for name, fingerprint in self.state_dict()["basis"].items():
            saved = state["basis"].get(name)
            if saved is None:
                raise CorruptState(f"{name}: the state was trained without this layer")
            if not torch.allclose(saved, fingerprint, rtol=0, atol=1e-3):
                raise CorruptState(
                    f"{name}: its basis is not the one trained in (fingerprint {fingerprint.tolist()}, saved "
                    f"{saved.tolist()}); the base weight, `rank`, `decomposition` or `seed` differ"
                )
