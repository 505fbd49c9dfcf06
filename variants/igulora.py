"""IGU-LoRA: AdaLoRA's form, trained along a path from the base model, with sensitivity over its uncertainty as score.

    y = W x + s f(c) B diag(E) A dropout(x)      A, B ~ N(0, 0.02²), E = 0.1
    in training c is drawn from 1/20, 2/20, …, 1 for every batch, as a point of the path of integrated gradients; in
    evaluation f = 1
    Ī, Ū as in AdaLoRA; score of an entry (Ī + 1e-6)/(Ū + 1e-6); of a component the sum of those of E and the means
    over A, B the components with the lowest scores have their E set to zero, along AdaLoRA's cubic budget
    loss + γ R

Paper     Cui et al. 2026, "IGU-LoRA: Adaptive Rank Allocation via Integrated Gradients and Uncertainty-Aware Scoring",
          ICLR, arXiv 2603.13792.
Code      withyou12/igulora 3f5ba10, the pruning stage.
Budget    `budget` replaces the number of ranks: exact to less than a rank; with profile paper alone. Otherwise a rank
          costs 1, or what `prices` says (the released code: 3.21 in feed-forward layers).
Family    adaptive ranks
Trains    A, B and E
Changes   ranks: pruned in training, along a cubic curve
Checked   released code: test_igulora test_every_number_of_the_released_code
Hooks     on_step_begin  begins the step's coefficients
          penalty        takes the next coefficient; γ R
          on_update      scores, masks
          on_train_end   removes what is masked; raises if the budget was not met
Cost      as AdaLoRA: r(in + out + 1) parameters per layer at the start, and two averages of each.
Decay     A, B and E decay.

  | profile | paper | released |
  |---|---|---|
  | f(c), s | c, α/r | c³, 1/(r + 1e-5): α is never passed on |
  | R | Σ ‖A Aᵀ − I‖² + ‖Bᵀ B − I‖² | mean of the norms, not squared, of the parts off the diagonal |
  | score of E | abs(E) | the ratio |
  | below the threshold | the budget is met from below | the first component beyond the budget is masked, too |

Known     The released code adds R once for every accumulated batch, here it counts once a step: set γ to their number.
          It trains a second stage from the base model at the ranks that the first one found; here a run is one stage.
          Its published table has no run of one stage.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from variants.core import field_checks, layers, target_modules
from variants.core.adapters import svd_triplets
from variants.core.adapters.adapter import check_rank
from variants.core.adapters.sieved import Sieved, remove_others
from variants.core.adapters.svd_triplets import INIT_STD
from variants.core.allocation.budget import above, masks, within
from variants.core.allocation.importance import NOT_FINITE, Importance
from variants.core.allocation.schedule import Cubic, check_acts
from variants.core.variant import AdapterVariant, Step, pattern_value

POINTS = 20  # of the path


class OnPath(Sieved):
    """ΔW = scale · B diag(e) A, times `factor` in training."""

    factor = 1.0

    def diagonal(self) -> torch.Tensor | None:
        return self.e * self.factor if self.training else self.e


class Paper:
    """The method of the paper, in the points in which the released code differs."""

    def factor(self, c: float) -> float:
        return c

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def regularizer(self, adapters: Sequence[Sieved]) -> torch.Tensor | None:
        return svd_triplets.orthogonality(((a.A, a.B) for a in adapters), "paper")

    def entries(self, importance: Importance, adapters: Mapping[str, Sieved]) -> dict[str, torch.Tensor]:
        """Return the scores of all entries, by "layer.part"."""
        return importance.ratios() | {f"{name}.e": a.e.detach().abs() for name, a in adapters.items()}

    def kept(self, scores: list[torch.Tensor], prices: list[float], budget: float) -> list[torch.Tensor]:
        """Return which components (r,) of each layer remain."""
        chosen = within(scores, prices, budget)  # type: ignore[arg-type]
        return masks(chosen, [len(score) for score in scores], scores[0].device)


class Released(Paper):
    """The released code."""

    def factor(self, c: float) -> float:
        return c**3

    def scale(self, alpha: float, rank: int) -> float:
        return 1 / (rank + 1e-5)

    def regularizer(self, adapters: Sequence[Sieved]) -> torch.Tensor | None:
        grams = [gram for a in adapters if not a.is_empty for gram in (a.A @ a.A.T, a.B.T @ a.B)]
        return torch.stack([(gram - gram.diag().diag()).norm() for gram in grams]).mean() if grams else None

    def entries(self, importance: Importance, adapters: Mapping[str, Sieved]) -> dict[str, torch.Tensor]:
        return importance.ratios()

    def kept(self, scores: list[torch.Tensor], prices: list[float], budget: float) -> list[torch.Tensor]:
        total = sum(price * len(score) for score, price in zip(scores, prices, strict=True))
        of_component = [price for score, price in zip(scores, prices, strict=True) for _ in range(len(score))]
        pairs = zip(torch.cat(scores).tolist(), of_component, strict=True)
        walked, threshold = 0.0, -math.inf
        for value, price in sorted(pairs):
            if walked >= total - budget:
                break
            walked, threshold = walked + price, value
        return [score > threshold for score in scores]


PROFILES = {"paper": Paper(), "released": Released()}


@dataclass(kw_only=True)
class IGULoRA(AdapterVariant):
    """IGU-LoRA.

    rank: of every layer at the start. target_rank: average over the layers at the end. alpha, dropout: as in LoRA.
    orthogonality: γ. initial_steps, final_steps, interval: as in AdaLoRA, in optimizer steps.
    beta1, beta2: smoothing factors of sensitivity and uncertainty.
    prices: what one rank of a layer costs in `target_rank`'s budget, by name, as in `targets`; others cost 1.
    seed: of the coefficients. profile: "paper" or "released", see the module's docstring.
    budget: trained parameters at the end, in place of the number of ranks (`variants.core.allocation.budget`).
    """

    exact_at_start: ClassVar[bool] = False
    same_in_batches: ClassVar[bool] = False  # every batch has its own point of the path

    name: str = "igulora"
    rank: int = 12
    target_rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    orthogonality: float = 0.1
    initial_steps: int = 0
    final_steps: int = 1
    interval: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    prices: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    profile: str = "paper"
    budget: int | None = None

    adapters: dict[str, OnPath] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank", "target_rank", "interval", "final_steps")
        field_checks.check_int(self, "initial_steps", "seed", at_least=0)
        field_checks.check_positive(self, "alpha")
        field_checks.check_not_negative(self, "orthogonality")
        field_checks.check_fraction(self, "dropout", "beta1", "beta2")
        field_checks.check_one_of(self, "profile", tuple(PROFILES))
        for price in self.prices.values():
            field_checks.check("prices", price, price > 0, "a number > 0")
        if self.target_rank > self.rank:
            raise ValueError(f"target_rank: {self.target_rank}, allowed: at most rank, which is {self.rank}")
        if self.profile == "released":
            field_checks.check_without_effect(self, "alpha", "profile: released")
        field_checks.check_budget(self, "prices")
        if self.budget is not None and self.profile == "released":
            raise ValueError(f"budget: {self.budget} with profile: released, allowed: null; that code counts ranks")
        self._starts: dict[str, int] = {}
        self._importance = Importance(self.beta1, self.beta2)
        self._coefficients: random.Random | None = None

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        steps = {"initial_steps": 2, "final_steps": 4, "interval": 2}
        return [
            {"rank": 4, "target_rank": 2, **steps},
            {"rank": 4, "target_rank": 2, "profile": "released", **steps},
            {"rank": 3, "target_rank": 1, "dropout": 0.1, "prices": {"fc1": 2.5}, "seed": 3, **steps},
            {"rank": 3, "target_rank": 2, "budget": 150, **steps},
        ]

    def plan(self, total_steps: int) -> None:
        Cubic(self.rank, self.target_rank, total_steps, self.initial_steps, self.final_steps, self.interval)
        check_acts(self.initial_steps, self.final_steps, self.interval, total_steps)

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        selected = self.select(model, head)
        for pattern in self.prices:
            if not any(target_modules.matches(name, pattern) for name in selected):
                raise ValueError(f"prices: no adapted layer ends in {pattern!r}")
        self._starts = dict.fromkeys(selected, self.rank)
        if self.budget is not None:
            sizes = {name: layers.size(layer) for name, layer in selected.items()}
            most = {name: min(size) for name, size in sizes.items()}
            costs = {name: sum(size) + 1 for name, size in sizes.items()}
            self._starts = above(costs, self.budget, most, self.rank / self.target_rank)
        for name, layer in selected.items():
            check_rank(self._starts[name], layer)

    def build(self, name: str, layer: nn.Module) -> OnPath:
        rank = self._starts[name]
        adapter = OnPath(layer, rank, PROFILES[self.profile].scale(self.alpha, rank), self.dropout)
        nn.init.normal_(adapter.A, std=INIT_STD)
        nn.init.normal_(adapter.B, std=INIT_STD)
        nn.init.constant_(adapter.e, 0.1)
        adapter.sieved = True
        return adapter

    def on_step_begin(self, step: Step) -> None:
        self._coefficients = random.Random(f"{self.seed}/{step.index}")

    def penalty(self) -> torch.Tensor | None:
        # Called once before each batch, and on every process: the draws are those of the step's own generator.
        if self._coefficients is not None:
            factor = PROFILES[self.profile].factor(self.drawn(self._coefficients))
            for adapter in self.adapters.values():
                adapter.factor = factor
        if not self.orthogonality:
            return None
        regularizer = PROFILES[self.profile].regularizer(list(self.adapters.values()))
        return None if regularizer is None else self.orthogonality * regularizer

    def drawn(self, generator: random.Random) -> float:
        """Return the next coefficient c."""
        return generator.randint(1, POINTS) / POINTS

    @torch.no_grad()
    def on_update(self, step: Step) -> None:
        if step.index < step.total - self.final_steps:
            self._importance.update(svd_triplets.parameters(self.adapters))
        start = sum(self._starts[name] * self._price(name) for name in self.adapters)
        schedule = Cubic(start, self.target, step.total, self.initial_steps, self.final_steps, self.interval)  # type: ignore[arg-type]
        budget, masked = schedule.at(step.index)
        if masked:
            for adapter, kept in zip(self.adapters.values(), self.kept(budget), strict=True):
                adapter.switch_off(kept)

    def kept(self, budget: float) -> list[torch.Tensor]:
        """Return which components (r,) of each layer remain."""
        scores = list(self.scores().values())
        if not torch.cat(scores).isfinite().all():
            raise ValueError(NOT_FINITE)
        return PROFILES[self.profile].kept(scores, [self._price(name) for name in self.adapters], budget)

    def scores(self) -> dict[str, torch.Tensor]:
        """Return the scores (r,) of every layer's components."""
        if not self._importance.mean:
            raise RuntimeError("importance: no step was scored; none before the final phase had finite gradients")
        entries = PROFILES[self.profile].entries(self._importance, self.adapters)
        return svd_triplets.scores(entries, list(self.adapters))

    @property
    def target(self) -> float:
        """The budget at the end: prices of all ranks, or parameters if `budget` is given."""
        if self.budget is not None:
            return self.budget
        return self.target_rank * sum(self._price(name) for name in self.adapters)

    def _price(self, name: str) -> float:
        """Return what one rank of the layer `name` costs, in units of `target`."""
        return pattern_value(self.prices, name, 1) if self.budget is None else self.adapters[name].cost

    def is_final_form(self, step: Step) -> bool:
        return step.index > step.total - self.final_steps

    def on_train_end(self, step: Step) -> None:
        remove_others(self.adapters, self.kept(self.target), step.optimizer)
        left = sum(adapter.A.shape[0] * self._price(name) for name, adapter in self.adapters.items())
        slack = max(self._price(name) for name in self.adapters)  # a price may be any number, so one rank may not fit
        if not self.target - slack < left <= self.target + 1e-9:
            raise RuntimeError(f"budget: {left:g} is left, the target is {self.target:g}")

    def state_dict(self) -> dict[str, Any]:
        ranks = {name: adapter.A.shape[0] for name, adapter in self.adapters.items()}
        return {"importance": self._importance.state_dict(), "ranks": ranks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._importance.load_state_dict(state["importance"])
        for name, adapter in self.adapters.items():
            adapter.reshape(state["ranks"][name])
