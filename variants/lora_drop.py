"""LoRA-drop: layers whose LoRA has a large output keep one of their own, all others of a type share one.

    y = W x + (α/r) B A dropout(x)            A: r×in, kaiming-uniform(√5)    B: out×r, zero
    before training, LoRA of every layer is trained on `sample_steps` steps' rows; on the same rows afterwards
    g_l = Σ ‖ΔW_l x_l‖²                       over the tokens; divided by its sum over the layers of l's type
    in each type the fewest layers whose g_l add up to `threshold` keep a LoRA of their own
    the others of the type share one A and B; all begin again as LoRA's

Layers are of one type if they have the same size and their names differ in numbers alone.

Paper     Zhou et al. 2025, "LoRA-drop: Efficient LoRA Parameter Pruning based on Output Evaluation", COLING,
          arXiv 2402.07721.
Budget    `budget` replaces rank: ranks as even as integers allow, of what is left of LoRAs after sharing.
Family    low rank
Trains    A and B
Changes   A and B: shared by layers, as chosen once before training
Checked   written out: test_lora_drop test_the_choice_written_out
Hooks     before_training  trains on the sample, measures outputs, and shares A and B
Passes    50 steps forward and backward and 50 forward before training (`sample_steps` to train, as many to measure)
Cost      `sample_steps` forward and backward passes and as many forward ones before training, with moments and a copy
          of all trained parameters; then r(in + out) parameters for each LoRA that is left, and LoRA's products in
          every layer.
Decay     A and B decay in training; on the sample nothing does.
Known     No code was found. From the abstract and from memory: threshold 0.9, half of LoRA's parameters on average. The
          paper's sample is stratified, a fraction of the training rows: here it is the rows of the run's first steps,
          in their order, once. Assumed: Adam at `lr` on the sample; layers are compared with those of their type,
          because only these can share; padding is left out of the sums. With `budget` the sample is trained with
          ranks for all layers. Not DropLoRA, nor the LoRA-Drop that skips layers in inference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import collectives, field_checks
from variants.core.adapters.adapter import LowRank
from variants.core.allocation.budget import even_ranks, spread
from variants.core.passes import Passes
from variants.core.variant import AdapterVariant


class Sharing(LowRank):
    """LoRA that may have another's A and B."""

    def share(self, owner: LowRank) -> None:
        """Take up the parameters of `owner` in place of its own: used here, but no parameters of this module."""
        for name in ("A", "B"):
            self._parameters.pop(name, None)
            self.__dict__[name] = getattr(owner, name)

    def closed_form(self) -> int:
        return super().closed_form() if "A" in self._parameters else 0


@dataclass(kw_only=True)
class LoRADrop(AdapterVariant):
    """LoRA-drop.

    rank: of every LoRA. alpha, dropout: as in LoRA. threshold: see the module's docstring; 0 lets all layers share.
    sample_steps: of the run, whose rows are the sample. lr: of training on it.
    budget: trained parameters, in place of rank (`variants.core.allocation.budget`).
    """

    name: str = "lora_drop"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    threshold: float = 0.9
    sample_steps: int = 50
    lr: float = 3e-4
    budget: int | None = None

    adapters: dict[str, Sharing] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank", "sample_steps")
        field_checks.check_positive(self, "alpha", "lr")
        field_checks.check_fraction(self, "dropout")
        field_checks.check("threshold", self.threshold, 0 <= self.threshold <= 1, "0 ≤ threshold ≤ 1")
        field_checks.check_budget(self, "rank")
        self._ranks: dict[str, int] = {}  # by layer, before sharing
        self._owners: dict[str, str] = {}  # of every layer, whose A and B it has
        self._shares: dict[str, float] = {}  # g_l, divided by its sum

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        sample = {"sample_steps": 3, "lr": 0.02}
        return [
            {"rank": 2, "threshold": 0.0, **sample},
            {"rank": 3, "dropout": 0.1, **sample},
            {"budget": 130, "threshold": 0.0, **sample},
        ]

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        selected = self.select(model, head)
        self._ranks = even_ranks(selected, self.rank, self.budget)
        self._owners = {name: name for name in selected}

    def build(self, name: str, layer: nn.Module) -> Sharing:
        return Sharing(layer, self._ranks[name], self.alpha / self._ranks[name], self.dropout)

    def before_training(self, passes: Passes[Any]) -> None:
        with passes.trial():
            self._train(passes)
            sums = self._measure(passes)
        types = self._types()
        self._shares = {name: sums[name] / sum(map(sums.__getitem__, of)) for of in types for name in of}
        self._owners = {name: owner for of in types for name, owner in self._chosen(of).items()}
        ranks = self._ranks
        if self.budget is not None:
            sizes = {name: (a.out_features, a.in_features) for name, a in self.adapters.items() if self._owns(name)}
            ranks = spread({n: sum(s) for n, s in sizes.items()}, self.budget, {n: min(s) for n, s in sizes.items()})
        self._share({name: ranks[owner] for name, owner in self._owners.items()})
        for name, adapter in self.adapters.items():
            if self._owns(name) and adapter.rank != self._ranks[name]:
                nn.init.kaiming_uniform_(adapter.A, a=5**0.5)
                nn.init.zeros_(adapter.B)

    def _train(self, passes: Passes[Any]) -> None:
        """Train all LoRAs, and the head, on the sample."""
        optimizer = torch.optim.Adam([p for p in passes.model.parameters() if p.requires_grad], lr=self.lr)
        for batches in passes.steps(self.sample_steps):
            passes.accumulate(batches)
            collectives.sum_gradients(passes.model)
            optimizer.step()
            optimizer.zero_grad()

    def _measure(self, passes: Passes[Any]) -> dict[str, float]:
        """Return g_l of every layer on the sample."""
        of_steps = (passes.squared_updates(self.adapters, batches) for batches in passes.steps(self.sample_steps))
        together = sum(torch.stack([*found.values()]) for found in of_steps)
        assert isinstance(together, torch.Tensor)
        sums = dict(zip(self.adapters, together.tolist(), strict=True))
        if not all(map(math.isfinite, sums.values())):
            raise ValueError(f"lr: {self.lr} on the sample leaves an output that is not finite, allowed: less")
        for name, value in sums.items():
            if not value:  # no gradient has moved its B
                raise ValueError(f"targets: {name} is not part of the loss; exclude it")
        return sums

    def _types(self) -> list[list[str]]:
        """Return the names of the layers of each type."""
        types: dict[tuple[Any, ...], list[str]] = {}
        for name, adapter in self.adapters.items():
            parts = tuple("" if part.isdigit() else part for part in name.split("."))
            types.setdefault((parts, adapter.out_features, adapter.in_features), []).append(name)
        return list(types.values())

    def _chosen(self, names: Sequence[str]) -> dict[str, str]:
        """Return the owner of each of the layers `names`, which are of one type."""
        owners, reached = {}, 0.0
        for name in sorted(names, key=lambda name: -self._shares[name]):
            if reached >= self.threshold * (1 - 1e-9):
                continue
            owners[name], reached = name, reached + self._shares[name]
        others = [name for name in names if name not in owners]
        return owners | dict.fromkeys(others, next(iter(others), ""))

    def _owns(self, name: str) -> bool:
        return self._owners[name] == name

    def _share(self, ranks: Mapping[str, int]) -> None:
        """Give layers their owners' A and B, with ranks by layer."""
        for name, owner in self._owners.items():
            adapter = self.adapters[name]
            if owner == name:
                adapter.reshape(ranks[name])
            adapter.scale = self.alpha / ranks[name]
        for name, owner in self._owners.items():
            if owner != name:
                self.adapters[name].share(self.adapters[owner])

    def report(self) -> dict[str, float]:
        owners = list(self._owners.values())
        return {"layers_that_share": sum(owners.count(owner) > 1 for owner in owners)}

    def state_dict(self) -> dict[str, Any]:
        return {"owners": dict(self._owners), "ranks": self.ranks(), "shares": dict(self._shares)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._owners, self._shares = dict(state["owners"]), dict(state["shares"])
        self._share(state["ranks"])
