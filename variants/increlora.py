"""IncreLoRA: ranks are added during training, to the modules where they matter most.

    y = W x + s Σ_i λ_i B_i A_i x         A_i: 1×in, B_i: out×1 ~ N(0, 0.02²)    λ_i: 0 for the first
    I_k = mean |ΔW ∘ ∂L/∂ΔW|              importance of module k, smoothed as in AdaLoRA: S_k = Ī_k Ū_k
    every ΔT steps the modules with the highest S_k get ranks, until the target is reached

Each module has a reserve ("advance learning"): components that train with fixed λ = 10⁻⁵, so that they are aligned when
growth makes their λ trainable. New parameters have their own warm-up.

Paper     Zhang et al. 2023, "IncreLoRA: Incremental Parameter Allocation Method for Parameter-Efficient
          Fine-tuning", arXiv 2308.12043.
Code      FeiyuZhang98/IncreLoRA 51a2d73.
Budget    `budget` counts parameters instead of ranks: modules grow in the order of their scores while a rank of theirs
          fits. Only profile paper supports it.
Family    adaptive ranks
Trains    A, B and e
Changes   ranks: added in training
Checked   released code: test_incremental test_every_number_of_the_released_code
Hooks     on_step_begin  resets the gradient of ΔW
          penalty        the orthogonality of AdaLoRA, over all components, the reserve included
          on_gradients   updates the scores (from gradients before clipping), then grows, before the optimizer's step
          on_train_end   removes the rest of the reserve; raises if the target was not met
Cost      r_k(in + out + 1) parameters, plus the reserve; one dense product (out×in) per step and module for the
          score, until the target is reached. No dense ΔW in the forward pass.
Decay     A, B and every trained λ decay, later ones too, as in the released code.

Where paper and released code differ, `profile` chooses:

  | | paper (default) | released |
  |---|---|---|
  | I_k | mean over the entries | sum / √entries: favours large matrices |
  | s | α / target rank, fixed: growth does not change the function | α / (r_k + 10⁻⁵): growth rescales the update |
  | budget | met exactly | exceeded if add · top does not divide the missing ranks |
  | R | sum of squares over modules | mean of norms, not squared |
  | reserve at the end | removed when the target is reached | λ set to zero; still trained, removed at the end |

Known     The published table is an image; an independent 6-seed run on RTE gives 87.30 ± 0.84 (C-GEAR, 2026).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import collectives, field_checks, layers
from variants.core.adapters.adapter import check_rank
from variants.core.adapters.components import Components
from variants.core.adapters.grow import OwnWarmup, add_params, remove_params
from variants.core.adapters.svd_triplets import orthogonality
from variants.core.allocation.budget import Budget, check_range
from variants.core.allocation.importance import NOT_FINITE
from variants.core.variant import AdapterVariant, Step

PROFILES = ("paper", "released")
RESERVE = 1e-5


@dataclass(kw_only=True)
class IncreLoRA(AdapterVariant):
    """IncreLoRA.

    rank: of every layer at the start. target_rank: average over the layers at the end.
    alpha, dropout: as in LoRA. orthogonality: γ.
    initial_steps: no growth up to this step. interval: steps between two rounds of growth.
    top: number of modules that grow in a round. add: ranks that each of them gets.
    warmup: warm-up steps of new parameters; null for none.
    reserve: whether modules have a trained reserve (the paper's advance learning).
    beta1, beta2: smoothing factors of sensitivity and uncertainty.
    profile: "paper" or "released", see the module's docstring.
    budget: trained parameters at the end, in place of target_rank (`variants.core.allocation.budget`).
    """

    name: str = "increlora"
    rank: int = 1
    target_rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    orthogonality: float = 0.1
    initial_steps: int = 0
    interval: int = 1
    top: int = 8
    add: int = 1
    warmup: int | None = None
    reserve: bool = True
    beta1: float = 0.85
    beta2: float = 0.85
    profile: str = "paper"
    budget: int | None = None

    adapters: dict[str, Components] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank", "target_rank", "interval", "top", "add")
        field_checks.check_int(self, "initial_steps", at_least=0)
        if self.target_rank < self.rank:
            raise ValueError(f"target_rank: {self.target_rank}, allowed: at least rank, which is {self.rank}")
        allowed = self.warmup is None or self.warmup >= 1
        field_checks.check("warmup", self.warmup, allowed, "a whole number ≥ 1, or null")
        field_checks.check_positive(self, "alpha")
        field_checks.check_not_negative(self, "orthogonality")
        field_checks.check_fraction(self, "dropout", "beta1", "beta2")
        field_checks.check_one_of(self, "profile", PROFILES)
        field_checks.check_budget(self, "target_rank")
        if self.budget is not None and self.profile == "released":
            raise ValueError(f"budget: {self.budget} with profile: released, allowed: null; that code counts ranks")
        self._total_steps: int | None = None
        self._started = False  # whether the reserve was created
        self._mean = self._uncertainty = torch.zeros(0)

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {"target_rank": 3, "top": 2, "interval": 2},
            {"target_rank": 2, "top": 3, "add": 2, "warmup": 2, "dropout": 0.1},
            {"target_rank": 2, "top": 4, "reserve": False, "initial_steps": 3},
            {"target_rank": 2, "top": 2, "interval": 3, "profile": "released"},
            {"budget": 150, "top": 2, "interval": 2},
        ]

    def plan(self, total_steps: int) -> None:
        self._total_steps = total_steps
        if self.warmup is not None and self.warmup >= total_steps:
            raise ValueError(f"warmup: {self.warmup}, allowed: fewer than the run's {total_steps} steps, or null")
        if (self.budget is not None or self.target_rank > self.rank) and not self._rounds(total_steps):
            raise ValueError(
                f"interval: {self.interval} leaves no round of growth in {total_steps} steps after "
                f"{self.initial_steps} initial ones, allowed: a smaller one"
            )

    def _rounds(self, total_steps: int) -> int:
        """Return the number of rounds of growth."""
        return len([t for t in range(total_steps) if t > self.initial_steps and t % self.interval == 0])

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        selected = self.select(model, head).values()
        for layer in selected:
            check_rank(self.rank, layer)
        if self._total_steps is None:
            return  # plan() was not called: the budget is checked only at the end
        missing = self._missing_ranks([layers.size(layer) for layer in selected])
        rounds = self._rounds(self._total_steps)
        at_most = rounds * min(self.top, len(selected)) * self.add
        if at_most < missing:
            raise ValueError(
                f"interval: {self.interval} leaves {rounds} rounds in {self._total_steps} steps, in which top × add "
                f"gives {at_most} ranks; {missing} are missing to the target"
            )

    def _missing_ranks(self, sizes: Sequence[tuple[int, int]]) -> int:
        """Return the largest number of ranks that the target may require to add to layers of these sizes."""
        if self.budget is None:
            return (self.target_rank - self.rank) * len(sizes)
        costs = [sum(size) + 1 for size in sizes]
        at_start = self.rank * sum(costs)
        check_range(self.budget, at_start, sum(min(size) * cost for size, cost in zip(sizes, costs, strict=True)))
        # The largest number results if all growth goes to the cheapest layers, as far as they can grow.
        ranks, room = 0, self.budget - at_start
        for size, cost in sorted(zip(sizes, costs, strict=True), key=lambda pair: pair[1]):
            number = min(min(size) - self.rank, room // cost)
            ranks, room = ranks + number, room - number * cost
        return ranks

    def build(self, name: str, layer: nn.Module) -> Components:
        return Components(layer, self.rank, self.dropout)

    def attach(self, model: nn.Module, head: Sequence[str] = ()) -> nn.Module:
        model = super().attach(model, head)
        device = next(iter(self.adapters.values())).weight.device
        self._mean = torch.zeros(len(self.adapters), dtype=torch.float64, device=device)
        self._uncertainty = torch.zeros_like(self._mean)
        self._rescale()
        return model

    @property
    def target(self) -> int:
        """Sum of ranks at the end, or of parameters if `budget` is given."""
        return self._limit.target

    @property
    def _limit(self) -> Budget:
        return Budget.of(self.budget, self.target_rank * len(self.adapters))

    @property
    def total(self) -> int:
        """Current sum of ranks or parameters, in units of `target`."""
        return self._limit.total(self.adapters.values())

    @property
    def is_full(self) -> bool:
        """Whether the target is reached: no further rank of a layer that can grow fits."""
        growing = [a for a in self.adapters.values() if a.active < min(a.in_features, a.out_features)]
        return self.target - self.total < min(map(self._limit.price, growing), default=1)

    def grows_by(self) -> int:
        mean = sum(adapter.cost for adapter in self.adapters.values()) / len(self.adapters)
        return round((self.target - self.total) * (mean if self.budget is None else 1))

    def penalty(self) -> torch.Tensor | None:
        if not self.orthogonality:
            return None
        regularizer = orthogonality((adapter.factors()[:2] for adapter in self.adapters.values()), self.profile)
        return None if regularizer is None else self.orthogonality * regularizer

    def on_step_begin(self, step: Step) -> None:
        watched = not self.is_full
        for adapter in self.adapters.values():
            adapter.gradient = None
            adapter.watched = watched

    def on_gradients(self, step: Step) -> None:
        t = step.index - 1  # the method counts from 0
        if self.is_full:
            return
        self._score()  # before growth, with the ΔW that the step has used
        if self.reserve and not self._started:
            self._started = True
            self._add_params(step, [p for a in self.adapters.values() for p in self._new_reserve(a)], like="A")
        if t > self.initial_steps and t % self.interval == 0:
            self._grow(step)
            # The released code tests for equality, so it never finishes if it has exceeded the target.
            finished = self.is_full if self.profile == "paper" else self.total == self.target
            if finished:
                self._finish_growth(step.optimizer)

    def is_final_form(self, step: Step) -> bool:
        return self.is_full

    def on_train_end(self, step: Step) -> None:
        for adapter in self.adapters.values():
            remove_params(step.optimizer, adapter.drop_reserve())
        if not self.is_full or (self.total > self.target and self.profile == "paper"):
            raise RuntimeError(f"budget: {self.total} {self._limit.unit} at the end, the target is {self.target}")

    def scores(self) -> torch.Tensor:
        """Return S of every module, in the order of the adapters."""
        return self._mean * self._uncertainty

    def state_dict(self) -> dict[str, Any]:
        if not self.scores().isfinite().all():
            raise ValueError(NOT_FINITE)
        return {
            "active": {name: adapter.active for name, adapter in self.adapters.items()},
            "components": {name: [e.requires_grad for e in adapter.e] for name, adapter in self.adapters.items()},
            # λ of the reserve is not a trained parameter, so it is saved here.
            "held": {name: torch.cat(list(adapter.e)).detach() for name, adapter in self.adapters.items()},
            "mean": self._mean,
            "uncertainty": self._uncertainty,
            "started": self._started,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._mean, self._uncertainty = (state[key].to(self._mean.device) for key in ("mean", "uncertainty"))
        self._started = state["started"]
        for name, adapter in self.adapters.items():
            adapter.active = state["active"][name]
            trains, values = state["components"][name], state["held"][name]
            while len(adapter.e) < len(trains):
                adapter.add(0.0, trains_e=True)
            for part in ("A", "B", "e"):
                setattr(adapter, part, nn.ParameterList(list(getattr(adapter, part))[: len(trains)]))
            for e, trained, value in zip(adapter.e, trains, values, strict=True):
                e.requires_grad_(trained)
                with torch.no_grad():
                    e.copy_(value)
        self._rescale()

    @torch.no_grad()
    def _score(self) -> None:
        """Update the averages with this step's importance of every module."""
        values = []
        for name, adapter in self.adapters.items():
            if adapter.gradient is None:
                raise ValueError(f"importance: {name} is not part of the loss; exclude it")
            size = adapter.gradient.numel()
            # Not by the norm of order 1, which takes nine times as long on a CPU.
            total = adapter.delta().mul_(collectives.all_reduce_sum(adapter.gradient)).abs_().sum()
            values.append(total / (size if self.profile == "paper" else math.sqrt(size)))
        importance = torch.stack(values).double()
        self._mean = self.beta1 * self._mean + (1 - self.beta1) * importance
        self._uncertainty = self.beta2 * self._uncertainty + (1 - self.beta2) * (importance - self._mean).abs()

    def _grow(self, step: Step) -> None:
        """Add ranks to the modules with the highest scores: one round of growth."""
        scores, missing = self.scores().tolist(), self.target - self.total
        if not all(map(math.isfinite, scores)):
            raise ValueError(NOT_FINITE)
        adapters = list(self.adapters.values())
        new_e: list[nn.Parameter] = []
        new_ab: list[nn.Parameter] = []
        if self.profile == "released":
            # It compares the number of modules with missing ranks, and includes ties, so it may exceed the target.
            threshold = sorted(scores, reverse=True)[min(self.top, missing, len(adapters)) - 1]
            chosen = [(i, self.add) for i in range(len(adapters)) if scores[i] >= threshold]
        else:
            chosen = []
            for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
                price = self._limit.price(adapters[i])
                room = min(adapters[i].in_features, adapters[i].out_features) - adapters[i].active
                if len(chosen) < self.top and (ranks := min(self.add, missing // price, room)) > 0:
                    chosen.append((i, ranks))
                    missing -= ranks * price
        for i, ranks in chosen:
            adapter = adapters[i]
            if not self.reserve:
                for _ in range(ranks):
                    *ab, e = adapter.add(0.0, trains_e=True)
                    new_ab += ab
                    new_e.append(e)
            for e in adapter.e[adapter.active : adapter.active + ranks]:
                if not e.requires_grad:
                    e.requires_grad_(True)
                    new_e.append(e)
            adapter.active += ranks
            if self.reserve:
                new_ab += self._new_reserve(adapter, ranks)
        self._add_params(step, new_e, like="e")
        self._add_params(step, new_ab, like="A")
        self._rescale()

    def _new_reserve(self, adapter: Components, size: int | None = None) -> list[nn.Parameter]:
        return [p for _ in range(size or self.add) for p in adapter.add(RESERVE, trains_e=False)]

    def _add_params(self, step: Step, parameters: list[nn.Parameter], like: str) -> None:
        """Add new parameters to the optimizer, with the options of the first component's."""
        if not parameters:
            return
        first = getattr(next(iter(self.adapters.values())), like)[0]
        # The scheduler's count is that of the steps before this one.
        curve = None if self.warmup is None else OwnWarmup(step.index, step.total, self.warmup)
        add_params(step.optimizer, step.scheduler, parameters, first, curve)

    def _finish_growth(self, optimizer: torch.optim.Optimizer) -> None:
        """Remove or disable the reserve, because the target is reached."""
        for adapter in self.adapters.values():
            adapter.watched, adapter.gradient = False, None
            if self.profile == "paper":
                remove_params(optimizer, adapter.drop_reserve())
                continue
            for e in adapter.e[adapter.active :]:
                nn.init.zeros_(e)

    def _rescale(self) -> None:
        for adapter in self.adapters.values():
            ranks = adapter.active + 1e-5 if self.profile == "released" else self._average_rank
            adapter.scale = self.alpha / ranks

    @property
    def _average_rank(self) -> float:
        """Average rank of a layer at the end."""
        if self.budget is None:
            return self.target_rank
        return self.budget / sum(adapter.cost for adapter in self.adapters.values())
