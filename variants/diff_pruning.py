"""Diff pruning: a dense update is gated entry by entry towards few entries, which are then trained alone.

    gated phase, `gated_steps` steps     W + z ∘ z_W ∘ V, V zero at the start; z for an entry, z_W for a whole weight,
                                         both hard-concrete on [−1.5, 1.5] with logits a, a_W, which start at 5
                                         loss + l0 (Σ P(z ≠ 0) + Σ P(z_W ≠ 0))
    then                                 the k entries of all layers with the largest abs(z ∘ z_W ∘ V) are trained

Paper     Guo, Rush and Kim 2021, "Parameter-Efficient Transfer Learning with Diff Pruning", ACL, arXiv 2012.07463.
Code      dguo98/DiffPruning 085fa7d. Its penalty is the sum above; it finds the threshold by bisection, so its count is
          approximate; here it is exact.
Budget    `budget` replaces density: exactly so many entries.
Family    sparse
Trains    every entry of W and its gate, then k entries
Changes   mask: chosen once, after `gated_steps` steps
Checked   written out: test_diff_pruning test_the_gated_phase_is_that_of_dense_tensors,
          test_the_largest_gated_entries_remain
Hooks     on_step_begin  draws the gates of the step
          penalty        the L0 term
          on_update      chooses, and removes gates and all other entries
          on_train_end   raises if none were chosen
Cost      in the gated phase two parameters, with gradients and moments, for every entry of the adapted layers, and
          W + ΔW in each pass; afterwards k entries. The gated phase is part of the run's steps.
Decay     values decay, towards the base model; gates do not.

  | profile | the last phase begins with |
  |---|---|
  | paper (default) | z ∘ z_W ∘ V at the chosen entries |
  | released | V there |

Known     Gates are drawn once a step, for all its batches; in evaluation they have no noise. The released code has the
          rates 1e-5 for V and 0.1 for gates (`gate_lr`), and 5e-5 afterwards; here V has the run's schedule throughout.
          It never steps the schedule of the gates' rate, and clips V and gates apart. Moments of chosen entries go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import field_checks, hard_concrete, layers
from variants.core.adapters import resize
from variants.core.adapters.sparse_delta import SparseDelta, check_finite, largest_of_groups
from variants.core.allocation.budget import check_range
from variants.core.masks.scopes import density
from variants.core.variant import AdapterVariant, Step

LOW, HIGH, START = -1.5, 1.5, 5.0
PROFILES = ("paper", "released")
GATES = ("gates", "weight_gate")


class GatedDelta(SparseDelta):
    """ΔW = z ∘ z_W ∘ `values`, with logits `gates` (nnz,) and `weight_gate` (1,); without them ΔW = `values`.

    drawn: noise of both for a training step, (nnz,) and (1,); None for none.
    """

    def __init__(self, base: nn.Module, indices: torch.Tensor) -> None:
        super().__init__(base, indices)
        self.gates = nn.Parameter(torch.full_like(self.values, START))
        self.weight_gate = nn.Parameter(self.values.new_full((1,), START))
        self.drawn: tuple[torch.Tensor, torch.Tensor] | None = None

    def acting(self) -> torch.Tensor:
        return self.gated(self.drawn if self.training else None)

    def gated(self, drawn: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        """Return z ∘ z_W ∘ `values`, (nnz,). drawn: noise; None for none."""
        if not len(self.gates):
            return self.values
        noises = (None, None) if drawn is None else drawn
        z, z_weight = (
            hard_concrete.gate(a, LOW, HIGH, noise)
            for a, noise in zip((self.gates, self.weight_gate), noises, strict=True)
        )
        return self.values * z * z_weight

    def delta(self) -> torch.Tensor:
        flat = self.values.new_zeros(self.out_features * self.in_features)
        return flat.index_add(0, self.indices, self.gated()).view(self.out_features, self.in_features)

    def closed_form(self) -> int:
        return len(self.values) + len(self.gates) + len(self.weight_gate)

    def keep(self, index: torch.Tensor, optimizer: torch.optim.Optimizer | None) -> None:
        """Keep the entries `index` (n,), ascending, of those there are, and remove all gates."""
        resize.keep(self, "values", index, 0, optimizer)
        for part in GATES:
            resize.keep(self, part, index[:0], 0, optimizer)
        self.set_indices(self.indices[index])
        self.drawn = None


@dataclass(kw_only=True)
class DiffPruning(AdapterVariant):
    """Diff pruning.

    density: k as a fraction of the entries of all adapted layers. gated_steps: of the gated phase.
    l0: weight of the penalty. gate_lr: the gates' learning rate. profile: "paper" or "released", see the module's
    docstring. budget: trained parameters at the end, in place of density (`variants.core.allocation.budget`).
    """

    name: str = "diff_pruning"
    density: float = 0.005
    gated_steps: int = 100
    l0: float = 1.25e-7
    gate_lr: float = 0.1
    profile: str = "paper"
    budget: int | None = None

    adapters: dict[str, GatedDelta] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "gated_steps")
        field_checks.check_not_negative(self, "l0")
        field_checks.check_positive(self, "gate_lr")
        field_checks.check("density", self.density, 0 < self.density <= 1, "0 < density ≤ 1")
        field_checks.check_one_of(self, "profile", PROFILES)
        field_checks.check_budget(self, "density")
        self._total = 0  # k
        self._chosen = False

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {"density": 0.3, "gated_steps": 3},
            {"density": 0.2, "gated_steps": 4, "l0": 1e-3, "gate_lr": 1.5, "profile": "released"},
            {"budget": 101, "gated_steps": 2},
        ]

    def plan(self, total_steps: int) -> None:
        if self.gated_steps >= total_steps:
            raise ValueError(f"gated_steps: {self.gated_steps}, allowed: fewer than the run's {total_steps} steps")

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        sizes = {name: layers.size(layer) for name, layer in self.select(model, head).items()}
        self._total = density(self.density, sizes) if self.budget is None else self.budget
        if self.budget is not None:
            check_range(self.budget, 1, sum(rows * columns for rows, columns in sizes.values()))

    def build(self, name: str, layer: nn.Module) -> GatedDelta:
        return GatedDelta(layer, torch.arange(layers.matrix(layer).numel()))

    def optimizer_options(self, name: str) -> Mapping[str, Any]:
        return {"lr": self.gate_lr} if self._is_gate(name) else {}

    def decays(self, name: str) -> bool:
        return not self._is_gate(name)

    @staticmethod
    def _is_gate(name: str) -> bool:
        return name.rpartition(".")[2] in GATES

    def on_step_begin(self, step: Step) -> None:
        if not self._chosen:
            for adapter in self.adapters.values():
                adapter.drawn = hard_concrete.noise(adapter.gates), hard_concrete.noise(adapter.weight_gate)

    def penalty(self) -> torch.Tensor | None:
        if self._chosen or not self.l0:
            return None
        logits = [logit for a in self.adapters.values() for logit in (a.gates, a.weight_gate)]
        return self.l0 * torch.stack([hard_concrete.open_probability(a, LOW, HIGH).sum() for a in logits]).sum()

    @torch.no_grad()
    def on_update(self, step: Step) -> None:
        if self._chosen or step.index < self.gated_steps:
            return
        gated = {name: adapter.gated() for name, adapter in self.adapters.items()}
        check_finite(gated, "density: an entry of {} is not finite")
        (chosen,) = largest_of_groups([[values.abs() for values in gated.values()]], [self._total])
        for (name, adapter), index in zip(self.adapters.items(), chosen, strict=True):
            adapter.keep(index, step.optimizer)
            if self.profile == "paper":
                adapter.values.copy_(gated[name][index])
        self._chosen = True

    def is_final_form(self, step: Step) -> bool:
        return self._chosen

    def on_train_end(self, step: Step) -> None:
        if not self._chosen:
            raise RuntimeError("density: no entries were chosen, because too few steps had finite gradients")

    def state_dict(self) -> dict[str, Any]:
        return {"indices": {name: adapter.indices for name, adapter in self.adapters.items()}, "chosen": self._chosen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._chosen = state["chosen"]
        for name, adapter in self.adapters.items():
            if self._chosen and len(adapter.gates):
                adapter.keep(state["indices"][name].to(adapter.values.device), None)
            adapter.set_indices(state["indices"][name])
