"""ReLoRA: LoRA that is merged and begins again every so many steps, so that the rank of the sum grows.

    y = (W + past) x + (α/r) B A dropout(x)        A: r×in, kaiming-uniform(√5)    B: out×r, zero
    every `interval` steps: past += (α/r) B A, a new A, B = 0; moments are pruned; the learning rate warms up again

  | reset | moments of A and B after a merge |
  |---|---|
  | random | each entry of each moment is set to zero with probability `pruned` (0.999 in the released code) |
  | magnitude | of each moment of each tensor the fraction `pruned` with the smallest size is set to zero |
  | zero | all are set to zero |

Paper     Lialin et al. 2024, "ReLoRA: High-Rank Training Through Low-Rank Updates", ICLR, arXiv 2307.05695.
Code      Guitaricet/relora 176f376. As there the step count of Adam goes on.
Budget    `budget` replaces rank: ranks as even as integers allow, of the factors that are trained at a time.
Family    low rank
Trains    A and B
Changes   factors: merged into W every `interval` steps and begun again
Checked   released code: test_relora test_every_number_of_the_released_code
Hooks     on_step_begin  sets the learning rate of the restarts
          on_update      merges, draws A, prunes moments
Cost      as LoRA until the first merge; then one more matrix of W's size, and a sum that forms W + past in each pass.
Decay     A and B decay, `past` does not.
Known     The number of parameters counts one round; ΔW has the rank of all of them. An export has the rank of the sum,
          and is as large as that asks for. As in the released code the first merge comes after `interval` + 1 steps.
          With reset magnitude a large entry of A may keep its first moment and lose its second, and jumps by rate ·
          m/ε. Pruned by chance, moments may do so, too. The released code trains biases and begins with full training;
          here neither is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from variants.core import field_checks
from variants.core.adapters.restarted import Restarted
from variants.core.allocation import budget
from variants.core.restarts import RESETS, Restarts, after_reset, reset_moments
from variants.core.variant import AdapterVariant, Step


@dataclass(kw_only=True)
class ReLoRA(AdapterVariant):
    """ReLoRA.

    rank, alpha, dropout: as in LoRA. interval: steps between two merges. reset, pruned: see the module's docstring.
    restart_warmup: steps over which the rate rises again after a restart, in a cosine schedule that replaces the run's;
    0 leaves the run's. first_warmup, least_rate: of that schedule, its first warm-up and its last factor.
    budget: trained parameters, in place of rank (`variants.core.allocation.budget`).
    """

    unpredicted: ClassVar[str] = "a dense sum of each layer after the first merge"

    name: str = "relora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    interval: int = 1000
    reset: str = "random"
    pruned: float = 0.999
    restart_warmup: int = 0
    first_warmup: int = 0
    least_rate: float = 0.1
    budget: int | None = None

    adapters: dict[str, Restarted] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank")
        field_checks.check_int(self, "interval", at_least=2)
        field_checks.check_int(self, "restart_warmup", "first_warmup", at_least=0)
        field_checks.check_positive(self, "alpha")
        field_checks.check_fraction(self, "dropout", "pruned", "least_rate")
        field_checks.check_one_of(self, "reset", RESETS)
        if self.reset == "zero":
            field_checks.check_without_effect(self, "pruned", "reset: zero")
        if not self.restart_warmup:
            field_checks.check_without_effect(self, "first_warmup", "restart_warmup: 0")
            field_checks.check_without_effect(self, "least_rate", "restart_warmup: 0")
        elif self.restart_warmup >= self.interval:
            raise ValueError(
                f"restart_warmup: {self.restart_warmup}, allowed: below interval, which is {self.interval}"
            )
        field_checks.check_budget(self, "rank")
        self._ranks: dict[str, int] = {}
        self._merges = 0

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {"rank": 1, "interval": 4},
            {"rank": 2, "interval": 5, "reset": "zero", "dropout": 0.1, "restart_warmup": 2, "first_warmup": 2},
            {"rank": 1, "interval": 3, "reset": "magnitude", "pruned": 0.8},
            {"budget": 101, "interval": 5, "reset": "zero"},
        ]

    def plan(self, total_steps: int) -> None:
        if self.interval >= total_steps:
            raise ValueError(f"interval: {self.interval}, allowed: fewer than the run's {total_steps} steps")

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        self._ranks = budget.even_ranks(self.select(model, head), self.rank, self.budget)

    def build(self, name: str, layer: nn.Module) -> Restarted:
        return Restarted(layer, self._ranks[name], self.alpha / self._ranks[name], self.dropout)

    def on_step_begin(self, step: Step) -> None:
        if not self.restart_warmup:
            return
        curve = Restarts(step.total, self.first_warmup, self.restart_warmup, self.interval, self.least_rate)
        curve.replace_schedule(step, "restart_warmup")

    @torch.no_grad()
    def on_update(self, step: Step) -> None:
        if (step.index - 1) // self.interval <= self._merges:  # a merge whose step was left out comes in the next
            return
        self._merges += 1
        for name, adapter in self.adapters.items():
            adapter.restart(self.drawn(name, adapter))
            reset_moments(name, adapter, step.optimizer, self.after_reset)

    def drawn(self, name: str, adapter: Restarted) -> torch.Tensor:
        """Return the new A (r, in) of the layer `name`."""
        return adapter.drawn()

    def after_reset(self, name: str, moment: torch.Tensor) -> torch.Tensor:
        """Return what is left of a moment, whose name is "layer.part.moment"."""
        return after_reset(moment, self.reset, self.pruned)

    def state_dict(self) -> dict[str, Any]:
        rounds = {name: adapter.rounds for name, adapter in self.adapters.items()}
        past = {name: adapter.past for name, adapter in self.adapters.items() if adapter.past is not None}
        return {"rounds": rounds, "past": past, "merges": self._merges}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._merges = state["merges"]
        for name, adapter in self.adapters.items():
            adapter.set_past(state["past"].get(name), state["rounds"][name])

    def start_from(self, state: Mapping[str, Any]) -> None:
        self.load_state_dict(state)
        self._merges = 0
