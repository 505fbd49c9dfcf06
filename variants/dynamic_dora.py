"""Dynamic-rank DoRA: components with a small share of ΔW are pruned. Not the weight-decomposed DoRA (`dora.py`).

    y = W x + (α/r) Σ c_i B_i A_i x           A, B kaiming-uniform, c zero; r: the rank at the start
    S_i ← β S_i + (1 − β) ‖c_i B_i A_i‖ / ‖Σ c_j B_j A_j‖        Frobenius norms
    pruning from `start` T to (1 − `end`) T, every `interval` steps: the c of the components with the lowest S are set
    to zero; the number of others falls along a cubic curve from r to `target_rank` per layer; the last mask is final
    loss + γ · mean variance of the rows of A and the columns of B, until then

Paper     Mao et al. 2024, "DoRA: Enhancing Parameter-Efficient Fine-Tuning with Dynamic Rank Distribution", ACL,
          arXiv 2405.17357.
Code      MIkumikumi0116/DoRA 235e21f, Src/Finetune_And_Benchmark.
Budget    `budget` replaces the number of ranks: exact to less than a rank; with profile paper alone.
Family    adaptive ranks
Trains    A, B and c
Changes   ranks: pruned in training, along a cubic curve
Checked   released code: test_dynamic_dora test_every_number_of_the_released_code
Hooks     on_step_begin  decides whether the variance is penalized
          penalty        γ · variance
          on_update      scores, prunes
          on_train_end   removes what is pruned; raises if the budget was not met
Cost      r(in + out + 1) parameters per layer at the start, and r scores.
Decay     A, B and c decay.

  | profile | paper | released |
  |---|---|---|
  | components pruned at step s | as the curve says | the curve rounded down, but one at least |
  | step s = n − start T | rounded down | rounded towards zero, so pruning may begin a step early, and twice |
  | after pruning | pruned components are removed | they are set to zero after every step |

Known     Between two prunings pruned c train on and may come back, in both profiles; the model is evaluated as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import field_checks, layers
from variants.core.adapters.adapter import check_rank
from variants.core.adapters.sieved import Sieved, remove_others
from variants.core.allocation.budget import Budget, above, masks, within
from variants.core.variant import AdapterVariant, Step

EPS = 1e-8
PROFILES = ("paper", "released")


@dataclass(kw_only=True)
class DynamicDoRA(AdapterVariant):
    """Dynamic-rank DoRA.

    rank: of every layer at the start. target_rank: average at the end. alpha, dropout: as in LoRA. beta: β.
    variance: γ. start, end: fractions of the steps before and after pruning. interval: steps between two prunings.
    profile: "paper" or "released", see the module's docstring.
    budget: trained parameters at the end, in place of the number of ranks (`variants.core.allocation.budget`).
    """

    name: str = "dynamic_dora"
    rank: int = 12
    target_rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    beta: float = 0.9
    variance: float = 0.1
    start: float = 0.15
    end: float = 0.5
    interval: int = 100
    profile: str = "paper"
    budget: int | None = None

    adapters: dict[str, Sieved] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank", "target_rank", "interval")
        field_checks.check_positive(self, "alpha")
        field_checks.check_not_negative(self, "variance")
        field_checks.check_fraction(self, "dropout", "beta", "start", "end")
        field_checks.check_one_of(self, "profile", PROFILES)
        if self.target_rank > self.rank:
            raise ValueError(f"target_rank: {self.target_rank}, allowed: at most rank, which is {self.rank}")
        if self.start + self.end >= 1:
            raise ValueError(f"end: {self.end}, allowed: with start: {self.start} below {1 - self.start:g}")
        field_checks.check_budget(self)
        if self.budget is not None and self.profile == "released":
            raise ValueError(f"budget: {self.budget} with profile: released, allowed: null; that code counts ranks")
        self._starts: dict[str, int] = {}
        self._scores: dict[str, torch.Tensor] = {}  # S (r,) by layer
        self._kept: dict[str, torch.Tensor] = {}  # the final mask (r,) by layer
        self._regularises = True

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {"rank": 3, "target_rank": 2, "interval": 2, "end": 0.3},
            {"rank": 4, "target_rank": 1, "interval": 3, "profile": "released", "dropout": 0.1, "end": 0.3},
            {"rank": 3, "target_rank": 2, "budget": 150, "interval": 2, "end": 0.3},
        ]

    def plan(self, total_steps: int) -> None:
        if self.last(total_steps) < 1:
            raise ValueError(f"end: {self.end} leaves no step of {total_steps} for pruning, allowed: less")

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        selected = self.select(model, head)
        self._starts = dict.fromkeys(selected, self.rank)
        if self.budget is not None:
            sizes = {name: layers.size(layer) for name, layer in selected.items()}
            most = {name: min(size) for name, size in sizes.items()}
            costs = {name: sum(size) + 1 for name, size in sizes.items()}
            self._starts = above(costs, self.budget, most, self.rank / self.target_rank)
        for name, layer in selected.items():
            check_rank(self._starts[name], layer)

    def build(self, name: str, layer: nn.Module) -> Sieved:
        rank = self._starts[name]
        adapter = Sieved(layer, rank, self.alpha / rank, self.dropout)
        nn.init.kaiming_uniform_(adapter.A)
        nn.init.kaiming_uniform_(adapter.B)
        nn.init.zeros_(adapter.e)
        self._scores[name] = torch.zeros_like(adapter.e).detach()
        return adapter

    def last(self, total: int) -> int:
        """Return S, the number of steps over which ranks are pruned."""
        return int(total * (1 - self.start - self.end))

    def place(self, index: int, total: int) -> int:
        """Return s, the place of the step `index` (from 1) in the pruning; below 0 before it."""
        exact = index - total * self.start
        return int(exact) if self.profile == "released" else math.floor(exact)

    def on_step_begin(self, step: Step) -> None:
        self._regularises = self.place(step.index, step.total) <= self.last(step.total)

    def penalty(self) -> torch.Tensor | None:
        if not self.variance or not self._regularises:
            return None
        terms, components = [], 0
        for adapter in self.adapters.values():
            terms += [adapter.A.var(1).sum(), adapter.B.var(0).sum()]
            components += 2 * adapter.A.shape[0]
        return self.variance * torch.stack(terms).sum() / components

    @torch.no_grad()
    def on_update(self, step: Step) -> None:
        s, last = self.place(step.index, step.total), self.last(step.total)
        if self._kept:
            self._enforce()
            return
        for name, adapter in self.adapters.items():
            self._scores[name] = self.beta * self._scores[name] + (1 - self.beta) * shares(adapter)
        if s >= last or (s >= 0 and s % self.interval == 0):
            kept = self.kept(min(s / last, 1.0))  # the last pruning comes later if its step was left out
            for name, adapter in self.adapters.items():
                adapter.switch_off(kept[name])
            if s >= last:
                self._kept = kept
                if self.profile == "paper":
                    self._remove(step.optimizer)

    def kept(self, progress: float) -> dict[str, torch.Tensor]:
        """Return which components (r,) of each layer remain. progress: s/S."""
        scores = list(self._scores.values())
        device, sizes = scores[0].device, [len(score) for score in scores]
        prices = [1 if self.budget is None else adapter.cost for adapter in self.adapters.values()]
        start = sum(price * size for price, size in zip(prices, sizes, strict=True))
        if self.profile == "paper":
            left = int(start - (start - self.target) * progress**3)
            return dict(zip(self._scores, masks(within(scores, prices, left), sizes, device), strict=True))
        pruned = max(int((self.rank - self.target_rank) / self.rank * progress**3 * start), 1)
        together = torch.cat(scores)
        above = together > together.kthvalue(pruned).values
        return dict(zip(self._scores, above.split(sizes), strict=True))

    @property
    def target(self) -> int:
        """Sum of ranks at the end, or of parameters if `budget` is given."""
        return self.target_rank * len(self.adapters) if self.budget is None else self.budget

    def _enforce(self) -> None:
        for name, kept in self._kept.items():
            self.adapters[name].switch_off(kept)

    def _remove(self, optimizer: torch.optim.Optimizer) -> None:
        left = remove_others(self.adapters, [self._kept[name] for name in self.adapters], optimizer)
        self._scores = {name: self._scores[name][index] for name, index in left.items()}
        self._kept = {name: torch.ones_like(score, dtype=torch.bool) for name, score in self._scores.items()}

    def is_final_form(self, step: Step) -> bool:
        return bool(self._kept)

    def on_train_end(self, step: Step) -> None:
        if not self._kept:
            self._kept = self.kept(1.0)
        self._remove(step.optimizer)
        Budget.of(self.budget, self.target).refuse_missed(self.adapters.values())

    def state_dict(self) -> dict[str, Any]:
        sieved = any(adapter.sieved for adapter in self.adapters.values())
        return {"scores": dict(self._scores), "kept": dict(self._kept), "sieved": sieved}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._kept = {name: kept.to(self.adapters[name].e.device) for name, kept in state["kept"].items()}
        for name, adapter in self.adapters.items():
            self._scores[name] = state["scores"][name].to(adapter.e.device)
            adapter.reshape(len(self._scores[name]))
            adapter.sieved = state["sieved"]


def shares(adapter: Sieved) -> torch.Tensor:
    """Return ‖c_i B_i A_i‖ / ‖Σ c_j B_j A_j‖ of every component (r,); Frobenius norms, without the scale."""
    b = adapter.B.detach() * adapter.e.detach()
    a = adapter.A.detach()
    return b.norm(dim=0) * a.norm(dim=1) / ((b @ a).norm() + EPS)
