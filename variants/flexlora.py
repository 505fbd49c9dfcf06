"""FlexLoRA: ranks move from layers with a concentrated spectrum to layers with a flat one.

    y = W x + (α/r₀) B diag(E) A dropout(x)       A, B ~ N(0, 0.02²), E zero; r₀: the initial rank plus 1e-5
    I = −Σ p log(p + 1e-8) / log r,  p = E²/Σ E²                   spectral entropy of a layer
    every ΔT steps after tᵢ, until t_f before the end: the b layers (r > 1) with the lowest I lose their smallest
    direction, the b with the highest I gain one: E zero, A and B drawn; the total rank is constant
    loss + γ R(A, B), the regularizer of AdaLoRA

Paper     "FlexLoRA", 2026, ICLR, arXiv 2601.22905; not the federated method of the same name (2024).
Code      Chongjie-Si/Subspace-Tuning 2c63d06, loralib/flexlora.py and the NLU trainer.
Budget    `budget` replaces rank: ranks as even as integers allow; what a round frees is spent again, as far as it fits.
Family    adaptive ranks
Trains    A, B and E
Changes   ranks: moved between layers in training
Checked   released code: test_flexlora test_every_number_of_the_released_code
Hooks     penalty        γ R
          on_step_begin  keeps the learning rate at its base (released)
          on_update      moves ranks
          on_train_end   raises if no round was made or the budget is not met
Cost      r(in + out + 1) parameters per layer, as AdaLoRA; no gradient is scored.
Decay     A, B and E decay.

  | profile | paper | released |
  |---|---|---|
  | smallest direction | smallest abs(E) | smallest E: the most negative one |
  | new A, B | N(0, 0.02²), as at the start | N(0, 1) |
  | b(t), schedule cubic | round(b (1 − progress)³) | round(b (1 − progress³)) |
  | R | Σ ‖·‖² | mean of ‖·‖ |
  | I of a layer of rank 1, or with E zero | 0 | not a number, which counts as the largest, or −∞ |
  | after a round | other parameters keep their moments | all moments are lost, the rate stays at its base and |
  | | | no weight decays for the rest of the run |

Known     Its GLUE table compares 1.9M parameters with LoRA's 1.3M, at a LoRA row (81.7) far below others' (88.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from variants.core import field_checks, layers
from variants.core.adapters import svd_triplets
from variants.core.adapters.adapter import check_rank
from variants.core.adapters.grow import hold_rate
from variants.core.adapters.svd_triplets import INIT_STD, Triplets
from variants.core.allocation.budget import Budget, fill, spread
from variants.core.allocation.layer_scores import spectral_entropy
from variants.core.allocation.schedule import check_acts, check_fits
from variants.core.variant import AdapterVariant, Step

SCHEDULES = ("constant", "cubic")


class Paper:
    """The method of the paper, in the points in which the released code differs."""

    orthogonality = "paper"
    std = INIT_STD  # of new directions

    def moved(self, b: int, progress: float) -> int:
        return round(b * (1 - progress) ** 3)

    def smallest(self, e: torch.Tensor) -> int:
        return int(e.abs().argmin())

    def scored(self, entropy: torch.Tensor) -> torch.Tensor:
        """Return the scores (layers,) of the entropies."""
        return entropy.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def after_round(self, step: Step) -> None:
        """What a round does to the optimizer."""


class Released(Paper):
    """The released code."""

    orthogonality = "released"
    std = 1.0

    def moved(self, b: int, progress: float) -> int:
        return round(b * (1 - progress**3))

    def smallest(self, e: torch.Tensor) -> int:
        return int(e.argmin())

    def scored(self, entropy: torch.Tensor) -> torch.Tensor:
        return entropy.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)  # as `topk` orders them

    def after_round(self, step: Step) -> None:
        assert isinstance(step.scheduler, LambdaLR)
        step.optimizer.state.clear()
        for group in step.optimizer.param_groups:
            group["weight_decay"] = 0.0
        hold_rate(step.optimizer, step.scheduler)


PROFILES = {"paper": Paper(), "released": Released()}


@dataclass(kw_only=True)
class FlexLoRA(AdapterVariant):
    """FlexLoRA.

    rank: of every layer at the start. alpha, dropout: as in LoRA. orthogonality: γ. exchange: b, ranks that move in a
    round. schedule: "constant" b or "cubic". initial_steps, final_steps, interval: tᵢ, t_f and ΔT, in optimizer steps.
    profile: "paper" or "released", see the module's docstring.
    budget: trained parameters, in place of rank (`variants.core.allocation.budget`).
    """

    name: str = "flexlora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    orthogonality: float = 0.1
    exchange: int = 4
    schedule: str = "constant"
    initial_steps: int = 0
    final_steps: int = 1
    interval: int = 10
    profile: str = "paper"
    budget: int | None = None

    adapters: dict[str, Triplets] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank", at_least=2)  # the last rank of a layer never moves
        field_checks.check_int(self, "exchange", "interval", "final_steps")
        field_checks.check_int(self, "initial_steps", at_least=0)
        field_checks.check_positive(self, "alpha")
        field_checks.check_not_negative(self, "orthogonality")
        field_checks.check_fraction(self, "dropout")
        field_checks.check_one_of(self, "schedule", SCHEDULES)
        field_checks.check_one_of(self, "profile", tuple(PROFILES))
        field_checks.check_budget(self, "rank")
        if self.budget is not None and self.profile == "released":
            raise ValueError(f"budget: {self.budget} with profile: released, allowed: null; that code counts ranks")
        self._starts: dict[str, int] = {}  # initial ranks by layer
        self._rounds = 0

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        steps = {"initial_steps": 1, "final_steps": 2, "interval": 3}
        return [
            {"rank": 3, "exchange": 1, **steps},
            {"rank": 4, "exchange": 2, "schedule": "cubic", "dropout": 0.1, "interval": 2, "final_steps": 3},
            {"rank": 3, "exchange": 2, "profile": "released", **steps},
            {"budget": 235, "exchange": 2, **steps},
        ]

    def plan(self, total_steps: int) -> None:
        check_fits(self.initial_steps, self.final_steps, total_steps)
        check_acts(0, self.final_steps, self.interval, total_steps - self.initial_steps)

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        selected = self.select(model, head)
        if self.exchange > len(selected):
            raise ValueError(f"exchange: {self.exchange}, allowed: at most the {len(selected)} adapted layers")
        if self.budget is None:
            self._starts = dict.fromkeys(selected, self.rank)
            for layer in selected.values():
                check_rank(self.rank, layer)
            return
        sizes = {name: layers.size(layer) for name, layer in selected.items()}
        most = {name: min(size) for name, size in sizes.items()}
        self._starts = spread({name: sum(size) + 1 for name, size in sizes.items()}, self.budget, most)
        if not any(rank > 1 for rank in self._starts.values()):
            raise ValueError(f"budget: {self.budget} leaves no rank that can move, allowed: more")

    def build(self, name: str, layer: nn.Module) -> Triplets:
        rank = self._starts[name]
        return Triplets(layer, rank, self.alpha / (rank + 1e-5), self.dropout)

    def penalty(self) -> torch.Tensor | None:
        if not self.orthogonality:
            return None
        factors = ((a.A, a.B) for a in self.adapters.values())
        regularizer = svd_triplets.orthogonality(factors, PROFILES[self.profile].orthogonality)
        return None if regularizer is None else self.orthogonality * regularizer

    def moved(self, t: int, total: int) -> int:
        """Return b(t), the ranks that move after step t, counted from 0; 0 if there is no round."""
        end = total - self.final_steps
        if not self.initial_steps < t < end or (t - self.initial_steps) % self.interval:
            return 0
        if self.schedule == "constant":
            return self.exchange
        return PROFILES[self.profile].moved(self.exchange, (t - self.initial_steps) / (end - self.initial_steps))

    def on_step_begin(self, step: Step) -> None:
        if self.profile == "released":
            if not isinstance(step.scheduler, LambdaLR):
                kind = type(step.scheduler).__name__
                raise ValueError(f"optim.schedule: {kind} with profile: released can't be stopped, allowed: linear")
            if self._rounds:
                hold_rate(step.optimizer, step.scheduler)  # again, because a resumed run has a new schedule

    @torch.no_grad()
    def on_update(self, step: Step) -> None:
        if moved := self.moved(step.index - 1, step.total):
            self._move(moved, step.optimizer)
            self._rounds += 1
            PROFILES[self.profile].after_round(step)

    def is_final_form(self, step: Step) -> bool:
        return step.index - 1 >= step.total - self.final_steps

    def on_train_end(self, step: Step) -> None:
        if not self._rounds:
            raise RuntimeError("rank: no round was made")
        self._limit.refuse_missed(self.adapters.values())

    @property
    def _limit(self) -> Budget:
        return Budget.of(self.budget, self.rank * len(self.adapters))

    def scores(self) -> dict[str, float]:
        """Return the score of every layer."""
        together = torch.stack([spectral_entropy(adapter.e.detach()) for adapter in self.adapters.values()])
        return dict(zip(self.adapters, PROFILES[self.profile].scored(together).tolist(), strict=True))

    def _move(self, count: int, optimizer: torch.optim.Optimizer) -> None:
        """Take a rank from the `count` layers with the lowest scores, and give as many to those with the highest."""
        scores, profile = self.scores(), PROFILES[self.profile]
        losing = sorted((n for n in scores if self.adapters[n].rank > 1), key=scores.__getitem__)[:count]
        for name in losing:
            adapter = self.adapters[name]
            removed = profile.smallest(adapter.e)
            kept = [i for i in range(adapter.rank) if i != removed]
            adapter.keep(torch.tensor(kept, device=adapter.e.device), optimizer)
        order, limit = sorted(scores, key=lambda n: -scores[n]), self._limit
        most = {name: min(adapter.in_features, adapter.out_features) for name, adapter in self.adapters.items()}
        prices = {name: limit.price(adapter) for name, adapter in self.adapters.items()}
        gained = fill(order, self.ranks(), most, prices, limit.target - limit.total(self.adapters.values()))
        for name in order:
            adapter = self.adapters[name]
            for _ in range(gained[name]):
                adapter.append(*self.drawn(name, adapter), adapter.e.new_zeros(1), optimizer)

    def drawn(self, name: str, adapter: Triplets) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a new row of A (1, in) and column of B (out, 1) for the layer `name`."""
        std = PROFILES[self.profile].std
        return adapter.A.new_empty(1, adapter.in_features).normal_(std=std), adapter.B.new_empty(
            adapter.out_features, 1
        ).normal_(std=std)

    def state_dict(self) -> dict[str, Any]:
        return {"ranks": self.ranks(), "rounds": self._rounds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._rounds = state["rounds"]
        for name, adapter in self.adapters.items():
            adapter.reshape(state["ranks"][name])

    def start_from(self, state: Mapping[str, Any]) -> None:
        self.load_state_dict(state)
        self._rounds = 0
