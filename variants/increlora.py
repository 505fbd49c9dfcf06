"""IncreLoRA: ranks are added during training, where they matter.

    y = W x + s Σ_i λ_i B_i A_i x         A_i: 1×in, B_i: out×1 ~ N(0, 0.02²)    λ_i: 0 for the first
    I_k = mean |ΔW ∘ ∂L/∂ΔW|              importance of module k, smoothed as in AdaLoRA: S_k = Ī_k Ū_k
    every ΔT steps the modules with the highest S_k get ranks, until the target is reached

Each module holds a reserve ("advance learning"): components that train with λ = 10⁻⁵ held fixed, so that
they are aligned when growth makes their λ trainable. A new part warms up on a curve of its own.

Paper     Zhang et al. 2023, "IncreLoRA: Incremental Parameter Allocation Method for Parameter-Efficient
          Fine-tuning", arXiv 2308.12043.
Code      FeiyuZhang98/IncreLoRA 51a2d73.
Budget    `budget` counts parameters in place of ranks: modules grow in the order of their scores as long as a rank
          of theirs still fits. Profile paper alone has it.
Hooks     on_step_begin  forgets the gradient of the step before
          penalty        the orthogonality of AdaLoRA, over all components, the reserve included
          on_gradients   scores (the gradient before clipping), then growth, before the optimizer's step
          on_train_end   what is left of the reserve leaves; raises where the target was not met
Cost      r_k(in + out + 1) parameters, the reserve on top of it; one dense product (out×in) a step and
          module for the score, until the target is reached. No dense ΔW in the forward pass.
Decay     A, B and every λ that trains decay, those that join later too, as in the released code.

Where paper and released code differ, `profile` chooses:

  | | paper (default) | released |
  |---|---|---|
  | I_k | mean over the entries | sum / √entries: large matrices win |
  | s | α / target rank, fixed: growth leaves the function as it is | α / (r_k + 10⁻⁵): growth rescales what is there |
  | budget | met exactly | overshot where add · top does not divide what is missing |
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
from variants.core.adapters.grow import OwnWarmup, join, leave
from variants.core.adapters.svd_triplets import orthogonality
from variants.core.allocation.budget import check_range
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
    top: modules that grow in a round. add: ranks that each of them gets.
    warmup: steps of the warm-up of a new part; null for no curve of its own.
    reserve: whether modules hold a trained reserve (the paper's advance learning).
    beta1, beta2: shares of the past in sensitivity and uncertainty.
    profile: "paper" or "released", see the module's text.
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
        field_checks.whole(self, "rank", "target_rank", "interval", "top", "add")
        field_checks.whole(self, "initial_steps", at_least=0)
        if self.target_rank < self.rank:
            raise ValueError(f"target_rank: {self.target_rank}, allowed: at least rank, which is {self.rank}")
        grows = self.warmup is None or self.warmup >= 1
        field_checks.check("warmup", self.warmup, grows, "a whole number ≥ 1, or null")
        field_checks.positive(self, "alpha")
        field_checks.not_negative(self, "orthogonality")
        field_checks.share(self, "dropout", "beta1", "beta2")
        field_checks.one_of(self, "profile", PROFILES)
        field_checks.budget(self, "target_rank")
        if self.budget is not None and self.profile == "released":
            raise ValueError(f"budget: {self.budget} with profile: released, allowed: null; that code counts ranks")
        self._total_steps: int | None = None
        self._started = False  # whether the reserve is there
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
        """How often modules may grow."""
        return len([t for t in range(total_steps) if t > self.initial_steps and t % self.interval == 0])

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        found = self.select(model, head)
        for layer in found.values():
            check_rank(self.rank, layer)
        if self._total_steps is None:
            return  # used without plan(): the budget is checked at the end alone
        missing = self._missing_ranks([layers.size(layer) for layer in found.values()])
        rounds = self._rounds(self._total_steps)
        at_most = rounds * min(self.top, len(found)) * self.add
        if at_most < missing:
            raise ValueError(
                f"interval: {self.interval} leaves {rounds} rounds in {self._total_steps} steps, in which top × add "
                f"gives {at_most} ranks; {missing} are missing to the target"
            )

    def _missing_ranks(self, sizes: Sequence[tuple[int, int]]) -> int:
        """Ranks that are at most to be added to layers of these sizes."""
        if self.budget is None:
            return (self.target_rank - self.rank) * len(sizes)
        costs = [sum(size) + 1 for size in sizes]
        at_start = self.rank * sum(costs)
        check_range(self.budget, at_start, sum(min(size) * cost for size, cost in zip(sizes, costs, strict=True)))
        # Where all growth goes to the cheapest layers, as far as these can grow.
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
        """Ranks over all layers at the end, or parameters where `budget` is given."""
        return self.target_rank * len(self.adapters) if self.budget is None else self.budget

    @property
    def total(self) -> int:
        """What there is now of what `target` counts."""
        return sum(adapter.active * self._price(adapter) for adapter in self.adapters.values())

    @property
    def is_full(self) -> bool:
        """Whether the target is reached: no rank that a layer has room for fits any more."""
        left = self.target - self.total
        prices = [self._price(a) for a in self.adapters.values() if a.active < min(a.in_features, a.out_features)]
        return left < min(prices, default=1)

    def _price(self, adapter: Components) -> int:
        """What one rank of `adapter` takes of the budget."""
        return 1 if self.budget is None else adapter.cost

    def grows_by(self) -> int:
        mean = sum(adapter.cost for adapter in self.adapters.values()) / len(self.adapters)
        return round((self.target - self.total) * (mean if self.budget is None else 1))

    def penalty(self) -> torch.Tensor | None:
        if not self.orthogonality:
            return None
        found = orthogonality((adapter.factors()[:2] for adapter in self.adapters.values()), self.profile)
        return None if found is None else self.orthogonality * found

    def on_step_begin(self, step: Step) -> None:
        watched = not self.is_full
        for adapter in self.adapters.values():
            adapter.gradient = None
            adapter.watched = watched

    def on_gradients(self, step: Step) -> None:
        t = step.index - 1  # the method counts from 0
        if self.is_full:
            return
        self._score()  # of ΔW as the step has seen it: before anything joins
        if self.reserve and not self._started:
            self._started = True
            self._join(step, [p for a in self.adapters.values() for p in self._new_reserve(a)], like="A")
        if t > self.initial_steps and t % self.interval == 0:
            self._grow(step)
            # The released code looks for equality, so that an overshoot leaves everything open.
            if self.is_full if self.profile == "paper" else self.total == self.target:
                self._close(step.optimizer)

    def is_final_form(self, step: Step) -> bool:
        return self.is_full

    def on_train_end(self, step: Step) -> None:
        for adapter in self.adapters.values():
            leave(step.optimizer, adapter.drop_reserve())
        if not self.is_full or (self.total > self.target and self.profile == "paper"):
            what = "ranks" if self.budget is None else "parameters"
            raise RuntimeError(f"budget: {self.total} {what} are there, the target is {self.target}")

    def scores(self) -> torch.Tensor:
        """S of every module, in the order of the adapters."""
        return self._mean * self._uncertainty

    def state_dict(self) -> dict[str, Any]:
        if not self.scores().isfinite().all():
            raise ValueError(NOT_FINITE)
        return {
            "active": {name: adapter.active for name, adapter in self.adapters.items()},
            "components": {name: [e.requires_grad for e in adapter.e] for name, adapter in self.adapters.items()},
            # λ of the reserve is no trained parameter, so it is saved here.
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
            trains, held = state["components"][name], state["held"][name]
            while len(adapter.e) < len(trains):
                adapter.add(0.0, trains_e=True)
            for part in ("A", "B", "e"):
                setattr(adapter, part, nn.ParameterList(list(getattr(adapter, part))[: len(trains)]))
            for e, trained, value in zip(adapter.e, trains, held, strict=True):
                e.requires_grad_(trained)
                with torch.no_grad():
                    e.copy_(value)
        self._rescale()

    @torch.no_grad()
    def _score(self) -> None:
        """Takes this step's importance of every module into the averages."""
        values = []
        for name, adapter in self.adapters.items():
            if adapter.gradient is None:
                raise ValueError(f"importance: {name} took no part in the loss; exclude it")
            size = adapter.gradient.numel()
            total = torch.linalg.vector_norm(adapter.delta().mul_(collectives.total(adapter.gradient)), 1)
            values.append(total / (size if self.profile == "paper" else math.sqrt(size)))
        importance = torch.stack(values).double()
        self._mean = self.beta1 * self._mean + (1 - self.beta1) * importance
        self._uncertainty = self.beta2 * self._uncertainty + (1 - self.beta2) * (importance - self._mean).abs()

    def _grow(self, step: Step) -> None:
        """One round: the modules with the highest scores get ranks."""
        scores, missing = self.scores().tolist(), self.target - self.total
        if not all(map(math.isfinite, scores)):
            raise ValueError(NOT_FINITE)
        adapters = list(self.adapters.values())
        new_e: list[nn.Parameter] = []
        new_ab: list[nn.Parameter] = []
        if self.profile == "released":
            # Counts modules against missing ranks, and takes all that tie: hence the overshoot.
            threshold = sorted(scores, reverse=True)[min(self.top, missing, len(adapters)) - 1]
            chosen = [(i, self.add) for i in range(len(adapters)) if scores[i] >= threshold]
        else:
            chosen = []
            for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
                price = self._price(adapters[i])
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
        self._join(step, new_e, like="e")
        self._join(step, new_ab, like="A")
        self._rescale()

    def _new_reserve(self, adapter: Components, size: int | None = None) -> list[nn.Parameter]:
        return [p for _ in range(size or self.add) for p in adapter.add(RESERVE, trains_e=False)]

    def _join(self, step: Step, parameters: list[nn.Parameter], like: str) -> None:
        """Enters new parameters in the optimizer, in the groups of the first component's."""
        if not parameters:
            return
        first = getattr(next(iter(self.adapters.values())), like)[0]
        # The scheduler has counted the steps made before this one.
        curve = None if self.warmup is None else OwnWarmup(step.index, step.total, self.warmup)
        join(step.optimizer, step.scheduler, parameters, first, curve)

    def _close(self, optimizer: torch.optim.Optimizer) -> None:
        """The target is reached: the reserve is not needed any more."""
        for adapter in self.adapters.values():
            adapter.watched, adapter.gradient = False, None
            if self.profile == "paper":
                leave(optimizer, adapter.drop_reserve())
                continue
            for e in adapter.e[adapter.active :]:
                nn.init.zeros_(e)

    def _rescale(self) -> None:
        for adapter in self.adapters.values():
            ranks = adapter.active + 1e-5 if self.profile == "released" else self._average_rank
            adapter.scale = self.alpha / ranks

    @property
    def _average_rank(self) -> float:
        """Of a layer at the end."""
        if self.budget is None:
            return self.target_rank
        return self.budget / sum(adapter.cost for adapter in self.adapters.values())
