"""SaLoRA: structure-aware low-rank adaptation; gates on components close until as many are open as the budget has.

    y = W x + (α/r) B (z ∘ A dropout(x))    A: r×in, kaiming-uniform(√5)    B: out×r, zero
                                            z: hard-concrete gates on [−0.1, 1.1] with logits a, which start at `start`
    L + λ max(0, C/C_end − 1)               C: expected cost of open components, Σ P(z ≠ 0) · cost
    λ ← λ + `multiplier_rate` (C/C_end − 1), at least 0, after every step that is gated

`final_steps` before the end the components whose gates are most likely open are kept, as many as the budget has; z
without noise is multiplied into B, and gates are gone.

Sources   Hu et al. 2023, "Structure-Aware Low-Rank Adaptation for Parameter-Efficient Fine-Tuning", Mathematics 11(20),
          for L0 gates on components under a Lagrangian; the gates are those of Louizos, Welling and Kingma,
          arXiv 1712.01312. No official code was found. Not the safety alignment of the same name (ICLR 2025).
Budget    `budget` counts parameters at the end instead of ranks; `rank` then only determines the ratio of the start to
          the end.
Family    adaptive ranks
Trains    A, B and gates
Changes   ranks: gates close in training, and are cut once
Checked   written out: test_salora test_gates_and_multiplier_are_those_of_dense_tensors,
          test_the_most_open_components_remain_and_keep_their_product
Hooks     on_step_begin  draws the gates of the step
          penalty        the Lagrangian's term
          on_update      moves λ, then cuts
          on_train_end   cuts, if that step was left out; raises if the budget was not met
Cost      r(in + out + 1) parameters of the initial rank until the cut, r(in + out) of the final one afterwards.
Decay     A and B decay, gates do not.
Known     What the paper sets for rates, starts and the multiplier could not be confirmed; here they are fields. The cut
          makes the ranks exact; the Lagrangian alone meets its target only on average. The paper's orthogonality term
          is left out. Until the cut every component counts as in use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import field_checks, hard_concrete, layers
from variants.core.adapters import resize
from variants.core.adapters.adapter import LowRank, check_rank
from variants.core.allocation.budget import Budget, above, within
from variants.core.variant import AdapterVariant, Step

LOW, HIGH = -0.1, 1.1


class GatedComponents(LowRank):
    """B diag(z) A with logits `e` (r,) of z; after `fix` B A, without gates. drawn: noise (r,) of a training step."""

    e: nn.Parameter

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float, start: float) -> None:
        super().__init__(base, rank, scale, dropout, diagonal=True)
        nn.init.constant_(self.e, start)
        self.drawn: torch.Tensor | None = None

    @property
    def gated(self) -> bool:
        return len(self.e) > 0

    def diagonal(self) -> torch.Tensor | None:
        if not self.gated:
            return None
        return hard_concrete.gate(self.e, LOW, HIGH, self.drawn if self.training else None)

    def delta(self) -> torch.Tensor:
        drawn, self.drawn = self.drawn, None
        try:
            return super().delta()
        finally:
            self.drawn = drawn

    @property
    def cost(self) -> int:
        return self.in_features + self.out_features + self.gated

    @torch.no_grad()
    def fix(self, index: torch.Tensor, optimizer: torch.optim.Optimizer | None) -> None:
        """Keep the components `index` (n,), with z in B, and remove the gates."""
        self.B.mul_(hard_concrete.gate(self.e, LOW, HIGH))
        self.keep(index, optimizer)
        self.drop_gates(optimizer)

    def drop_gates(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Remove the gates. ΔW is another one then, unless they are all one."""
        resize.keep(self, "e", torch.arange(0), 0, optimizer)
        self.drawn = None


@dataclass(kw_only=True)
class SaLoRA(AdapterVariant):
    """SaLoRA.

    rank, alpha, dropout: as in LoRA, at the start. target_rank: average rank at the end. start: a at the start.
    gate_lr_scale: learning rate of the gates relative to the run's. multiplier_rate: of λ.
    final_steps: steps after the cut.
    budget: trained parameters at the end, in place of target_rank (`variants.core.allocation.budget`).
    """

    name: str = "salora"
    rank: int = 12
    target_rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    start: float = 2.0
    gate_lr_scale: float = 10.0
    multiplier_rate: float = 0.1
    final_steps: int = 1
    budget: int | None = None

    adapters: dict[str, GatedComponents] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank", "target_rank", "final_steps")
        field_checks.check_positive(self, "alpha", "gate_lr_scale", "multiplier_rate")
        field_checks.check_fraction(self, "dropout")
        field_checks.check_budget(self)
        if self.target_rank > self.rank:
            raise ValueError(f"target_rank: {self.target_rank}, allowed: at most rank, which is {self.rank}")
        self._starts: dict[str, int] = {}  # initial ranks by layer
        self._multiplier = torch.zeros(())  # λ
        self._cut = False

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {"rank": 4, "target_rank": 2, "final_steps": 4},
            {"rank": 3, "target_rank": 2, "dropout": 0.1, "multiplier_rate": 2.0, "final_steps": 3},
            {"rank": 3, "target_rank": 2, "budget": 130, "final_steps": 5},
        ]

    def plan(self, total_steps: int) -> None:
        if self.final_steps >= total_steps:
            raise ValueError(f"final_steps: {self.final_steps}, allowed: fewer than the run's {total_steps} steps")

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        selected = self.select(model, head)
        self._starts = dict.fromkeys(selected, self.rank)
        if self.budget is not None:
            sizes = {name: layers.size(layer) for name, layer in selected.items()}
            most = {name: min(size) for name, size in sizes.items()}
            costs = {name: sum(size) for name, size in sizes.items()}
            self._starts = above(costs, self.budget, most, self.rank / self.target_rank)
        for name, layer in selected.items():
            check_rank(self._starts[name], layer)

    def build(self, name: str, layer: nn.Module) -> GatedComponents:
        return GatedComponents(layer, self._starts[name], self.alpha / self.rank, self.dropout, self.start)

    @property
    def _budget(self) -> Budget:
        return Budget.of(self.budget, self.target_rank * len(self._starts))

    def _price(self, adapter: GatedComponents) -> int:
        """Return what a component costs at the end, without a gate."""
        return adapter.in_features + adapter.out_features if self._budget.in_parameters else 1

    def optimizer_options(self, name: str) -> Mapping[str, Any]:
        return {"lr_scale": self.gate_lr_scale} if name.endswith(".e") else {}

    def decays(self, name: str) -> bool:
        return not name.endswith(".e")

    def on_step_begin(self, step: Step) -> None:
        for adapter in self.adapters.values():
            adapter.drawn = hard_concrete.noise(adapter.e.detach()) if adapter.gated else None

    def excess(self) -> torch.Tensor:
        """Return C/C_end − 1."""
        costs = [
            self._price(adapter) * hard_concrete.open_probability(adapter.e, LOW, HIGH).sum()
            for adapter in self.adapters.values()
        ]
        return torch.stack(costs).sum() / self._budget.target - 1

    def penalty(self) -> torch.Tensor | None:
        if self._cut:
            return None
        excess = self.excess()
        return self._multiplier.to(excess) * excess.relu()

    @torch.no_grad()
    def on_update(self, step: Step) -> None:
        if self._cut:
            return
        excess = self.excess()
        self._multiplier = (self._multiplier.to(excess) + self.multiplier_rate * excess).clamp(min=0.0)
        if step.index >= step.total - self.final_steps:
            self._choose(step.optimizer)

    def _choose(self, optimizer: torch.optim.Optimizer) -> None:
        adapters = list(self.adapters.values())
        kept = within([a.e for a in adapters], [self._price(a) for a in adapters], self._budget.target)
        for adapter, components in zip(adapters, kept, strict=True):
            adapter.fix(torch.tensor(components, dtype=torch.int64, device=adapter.A.device), optimizer)
        self._cut = True

    def is_final_form(self, step: Step) -> bool:
        return self._cut

    def on_train_end(self, step: Step) -> None:
        if not self._cut:
            self._choose(step.optimizer)
        self._budget.refuse_missed(self.adapters.values())

    def state_dict(self) -> dict[str, Any]:
        return {
            "ranks": {name: adapter.rank for name, adapter in self.adapters.items()},
            "multiplier": self._multiplier,
            "cut": self._cut,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._multiplier, self._cut = state["multiplier"], state["cut"]
        for name, adapter in self.adapters.items():
            adapter.reshape(state["ranks"][name])
            if self._cut and adapter.gated:
                adapter.drop_gates(None)
