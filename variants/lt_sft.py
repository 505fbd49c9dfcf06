"""LT-SFT: full fine-tuning finds the entries that change most, then these are trained again from the start.

    in each of `iterations`:
      full phase, `full_steps` steps      every entry of the adapted layers is trained
      mask                                plus the k / `iterations` entries with the largest abs(θ − θ₀) not yet in it
      rewind                              θ as it was before the full phase, and new moments
      sparse phase, until its end         only entries in the mask are trained
    loss + l1 · Σ abs(θ − θ₀) / number of the model's parameters

Paper     Ansell et al. 2022, "Composable Sparse Fine-Tuning for Cross-Lingual Transfer", ACL, arXiv 2110.07560.
Code      cambridgeltl/composable-sft 29f7872. There the copy θ₀ stays in the graph, so the l1 term has no gradient, and
          ties at the threshold add more than k entries; here it has one, and k is exact.
LoTA      Panda et al. 2024, "Lottery Ticket Adaptation", arXiv 2406.16797 (variant=lota): the same without l1 and
          biases. Its code trains with RMSprop and clips each tensor apart; here the run's optimizer and clipping hold.
Budget    `budget` replaces density: exactly so many entries.
Family    sparse
Trains    every entry of W, then k of them
Changes   mask: chosen after each full phase, and values are rewound
Checked   released code: test_lt_sft test_every_number_of_the_released_code
Hooks     penalty        the l1 term
          on_update      ends a phase: chooses, rewinds, frees or adds entries
          on_train_end   raises if the last phase was not reached
Cost      gradients and moments of every entry of the adapted layers in the full phases, and W + ΔW formed in each pass;
          afterwards k entries. The full phases are part of the run's steps, so they count as its time.
Decay     values at weights decay, towards the base model; those of biases do not. The released scripts set none.
Known     The learning rate follows one schedule over all phases; the released code starts a new one in each. The head
          is rewound, too, and trained whole. An exported low-rank adapter can't hold biases; merge, or set `biases:
          false`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import field_checks, layers, target_modules
from variants.core.adapters import resize
from variants.core.adapters.biased_delta import BiasedDelta, biases
from variants.core.adapters.sparse_delta import check_finite, largest_of_groups
from variants.core.allocation.budget import check_range
from variants.core.variant import AdapterVariant, Step

PARTS = {"values": "indices", "bias_values": "bias_indices"}  # parameters, and where their entries are


@dataclass(kw_only=True)
class LTSFT(AdapterVariant):
    """LT-SFT.

    density: k as a fraction of the entries of all adapted layers. full_steps: of each full phase.
    iterations: how often both phases are run; the mask grows by k / iterations in each. l1: weight of the l1 term.
    biases: whether biases of the adapted layers are trained and masked, too.
    budget: trained parameters at the end, in place of density (`variants.core.allocation.budget`).
    """

    name: str = "lt_sft"
    density: float = 0.05
    full_steps: int = 100
    iterations: int = 1
    l1: float = 0.1
    biases: bool = True
    budget: int | None = None

    adapters: dict[str, BiasedDelta] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "full_steps", "iterations")
        field_checks.check_not_negative(self, "l1")
        field_checks.check("density", self.density, 0 < self.density <= 1, "0 < density ≤ 1")
        field_checks.check_budget(self, "density")
        self._total = 0  # k
        self._size = 1  # parameters of the whole model
        self._full = True  # whether a full phase goes on
        self._masks = 0  # masks chosen so far
        self._head: dict[str, nn.Parameter] = {}
        self._before: dict[str, torch.Tensor] = {}  # the mask and its values, and the head, before the full phase

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {"density": 0.3, "full_steps": 2},
            {"density": 0.2, "full_steps": 2, "iterations": 2, "l1": 0.0, "biases": False},
            {"budget": 101, "full_steps": 2},
        ]

    def plan(self, total_steps: int) -> None:
        length = total_steps // self.iterations
        if self.full_steps >= length:
            raise ValueError(
                f"full_steps: {self.full_steps}, allowed: fewer than the {length} steps of an iteration "
                f"({total_steps} steps, {self.iterations} iterations)"
            )

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        selected = self.select(model, head).values()
        size = sum(layers.matrix(layer).numel() + biases(layer, self.biases) for layer in selected)
        self._total = int(size * self.density) if self.budget is None else self.budget
        self._size = sum(p.numel() for p in model.parameters())
        if self.budget is not None:
            check_range(self.budget, self.iterations, size)
        elif self._total < self.iterations:
            raise ValueError(f"density: {self.density} keeps {self._total} of {size} entries, allowed: more")

    def attach(self, model: nn.Module, head: Sequence[str] = ()) -> nn.Module:
        model = super().attach(model, head)
        self._head = {name: p for name, p in model.named_parameters() if target_modules.inside(name, head)}
        self._remember()
        return model

    def build(self, name: str, layer: nn.Module) -> BiasedDelta:
        everything = torch.arange(layers.matrix(layer).numel())
        return BiasedDelta(layer, everything, torch.arange(biases(layer, self.biases)))

    def penalty(self) -> torch.Tensor | None:
        if not self.l1:
            return None
        sizes = [p.abs().sum() for a in self.adapters.values() for p in (a.values, a.bias_values)]
        return self.l1 * torch.stack(sizes).sum() / self._size

    @torch.no_grad()
    def on_update(self, step: Step) -> None:
        begun = self._masks * (step.total // self.iterations)  # where the iteration of the next mask begins
        if self._full and step.index >= begun + self.full_steps:  # later if that step was left out
            self._choose(step.optimizer)
        elif not self._full and self._masks < self.iterations and step.index >= begun:
            self._open(step.optimizer)

    def _remember(self) -> None:
        """Keep the mask and its values, and the head, as they are before a full phase."""
        self._before = {f"head/{name}": p.detach().clone() for name, p in self._head.items()}
        if self._masks:
            for name, adapter in self.adapters.items():
                for part, at in PARTS.items():
                    self._before[f"{at}/{name}"] = getattr(adapter, at).clone()
                    self._before[f"{part}/{name}"] = getattr(adapter, part).detach().clone()

    def _choose(self, optimizer: torch.optim.Optimizer) -> None:
        """End a full phase: add the entries that changed most to the mask, rewind, and free the others."""
        changes, earlier = {}, {}
        for name, adapter in self.adapters.items():
            for part, at in PARTS.items():
                key = f"{part}/{name}"
                changes[key] = getattr(adapter, part).detach().abs()
                earlier[key] = self._before.get(f"{at}/{name}", changes[key].new_zeros(0, dtype=torch.int64))
                changes[key] = changes[key].index_fill(0, earlier[key], -1.0)  # in the mask already
        check_finite(changes, "density: the change of {} is not finite")
        self._masks += 1
        # The last iteration adds what division left over.
        last = self._masks == self.iterations
        whole = self._total if last else self._total // self.iterations * self._masks
        count = whole - sum(map(len, earlier.values()))
        (chosen,) = largest_of_groups([[*changes.values()]], [count])
        for (key, old), new in zip(earlier.items(), chosen, strict=True):
            part, name = key.split("/")
            adapter, at = self.adapters[name], PARTS[part]
            index = torch.cat([old, new]).sort().values
            resize.keep(adapter, part, index, 0, optimizer)
            values = getattr(adapter, part)
            values.zero_()
            if len(old):
                values[torch.searchsorted(index, old)] = self._before[key]
            _place(adapter, at, index)
        for name, p in self._head.items():
            p.copy_(self._before[f"head/{name}"])
        self._full, self._before = False, {}
        optimizer.state.clear()

    def _open(self, optimizer: torch.optim.Optimizer) -> None:
        """Begin the next full phase: all entries are trained, those outside the mask from zero."""
        self._remember()
        for adapter in self.adapters.values():
            for part, at in PARTS.items():
                old, index = getattr(adapter, part).detach().clone(), getattr(adapter, at)
                size = adapter.weight.numel() if part == "values" else biases(adapter.base, self.biases)
                resize.append(adapter, part, old.new_zeros(size - len(old)), 0, optimizer)
                getattr(adapter, part).zero_().index_copy_(0, index, old)
                _place(adapter, at, torch.arange(size, device=index.device))
        self._full = True
        optimizer.state.clear()

    def is_final_form(self, step: Step) -> bool:
        return not self._full and self._masks == self.iterations

    def on_train_end(self, step: Step) -> None:
        if not self.is_final_form(step):
            raise RuntimeError(f"density: {self._masks} of {self.iterations} masks were chosen")

    def decays(self, name: str) -> bool:
        return not name.endswith(".bias_values")

    def state_dict(self) -> dict[str, Any]:
        places = {at: {name: getattr(a, at) for name, a in self.adapters.items()} for at in PARTS.values()}
        return {**places, "full": self._full, "masks": self._masks, "before": dict(self._before)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._full, self._masks = state["full"], state["masks"]
        for name, adapter in self.adapters.items():
            adapter.hold_both(state["indices"][name], state["bias_indices"][name])
        device = next(iter(self.adapters.values())).weight.device
        self._before = {key: tensor.to(device) for key, tensor in state["before"].items()}

    def start_from(self, state: Mapping[str, Any]) -> None:
        raise ValueError("init_from: a mask belongs to its run's start, allowed: null")


def _place(adapter: BiasedDelta, at: str, index: torch.Tensor) -> None:
    if at == "indices":
        adapter.set_indices(index)
    else:
        adapter.bias_indices = index
