"""AdaLoRA: adaptive budget allocation by pruning the singular values of an SVD-shaped update.

    y = W x + s · P Λ Q dropout(x)        Q: r×in (our A), P: out×r (our B), N(0, 0.02²)    Λ: r (our e), zero
    s = α / (r + 10⁻⁵), r the initial rank throughout

    L + γ R(P, Q)                                      R drives P and Q towards orthogonality
    S_i = s(Λ_i) + mean_j s(Q_ij) + mean_j s(P_ji)     s(·): smoothed sensitivity × uncertainty
    the budget b(t) falls along a cubic from all ranks to the target; the b(t) highest S_i are kept

Paper     Zhang et al. 2023, "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient
          Fine-Tuning", ICLR, arXiv 2303.10512: equations 3 to 12, algorithm 1.
Code      QingruZhang/AdaLoRA d10f5eb.
Budget    `budget` counts parameters instead of ranks: the components with the highest scores that fit into it are
          kept, so the result is less than one rank below it. rank and target_rank then only determine the ratio of
          initial to final ranks. Only profile paper supports it.
Family    adaptive ranks
Trains    A, B and e
Changes   ranks: pruned in training, along a cubic curve
Checked   released code: test_adalora test_every_number_of_the_released_code; PEFT: test_adalora
          test_pefts_trajectory_where_both_mask_at_the_same_steps
Hooks     penalty       R, scaled by γ
          on_update     updates the scores, from the step's gradients and the parameters after it, then the mask
          on_train_end  removes masked components; raises if the target was not met
Cost      r(in + out + 1) parameters of the *initial* rank until components are removed, and two averages of each.

Decay     P, Q and Λ decay, as in the released code; `orthogonality` keeps P and Q from vanishing.

Where paper and released code differ, `profile` chooses:

  | | paper (default) | released |
  |---|---|---|
  | R | sum over modules of ‖QQᵀ − I‖² + ‖PᵀP − I‖² | mean over all P and Q of ‖·‖, not squared |
  | between two masks | masked ranks keep training, but evaluation masks them | evaluation is at full rank |
  | final phase | begins at T − t_f; masked ranks are removed | begins at T − t_f + 1; masked every step |
  | ties at the threshold | the budget is met exactly | everything at or below it is masked |

The default is paper: in the released code Adam revives a masked value at the next step, so evaluations between two
masks see the unpruned model. `hard` removes ranks at every allocation, so that they can't return. In both profiles the
ranks that are masked at the end are removed.

Known     Budgets count ranks, not parameters: a rank costs 2.5 times as much in a feed-forward matrix. In the released
          code trainable memory never shrinks. The published margin over LoRA is below one point under a
          validation/test protocol (PSOFT, ICLR 2026, table for DeBERTaV3-base).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import field_checks, layers
from variants.core.adapters import svd_triplets
from variants.core.adapters.adapter import check_rank
from variants.core.adapters.masked_triplets import MaskedTriplets
from variants.core.allocation.budget import Budget, above, masks, within
from variants.core.allocation.importance import NOT_FINITE
from variants.core.allocation.schedule import Cubic, check_acts
from variants.core.allocation.score import Score
from variants.core.allocation.scores import Magnitude, Sensitivity, SensitivityUncertainty
from variants.core.variant import AdapterVariant, Step

SCORES = ("sensitivity_uncertainty", "sensitivity", "magnitude")


@dataclass(kw_only=True)
class AdaLoRA(AdapterVariant):
    """AdaLoRA.

    rank: of every layer at the start. target_rank: average over the layers at the end, at most `rank`.
    alpha, dropout: as in LoRA. orthogonality: γ.
    initial_steps, final_steps, interval: tᵢ, t_f and ΔT, in optimizer steps.
    beta1, beta2: smoothing factors of sensitivity and uncertainty.
    score: "sensitivity_uncertainty" (the method), "sensitivity" or "magnitude" of Λ (its ablations).
    profile: "paper" or "released", see the module's docstring. hard: remove ranks at every allocation.
    budget: trained parameters at the end, in place of the number of ranks (`variants.core.allocation.budget`).
    """

    name: str = "adalora"
    rank: int = 12
    target_rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    orthogonality: float = 0.1
    initial_steps: int = 0
    final_steps: int = 0
    interval: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    score: str = "sensitivity_uncertainty"
    profile: str = "paper"
    hard: bool = False
    budget: int | None = None

    adapters: dict[str, MaskedTriplets] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank", "target_rank", "interval")
        field_checks.check_int(self, "initial_steps", "final_steps", at_least=0)
        if self.target_rank > self.rank:
            raise ValueError(f"target_rank: {self.target_rank}, allowed: at most rank, which is {self.rank}")
        field_checks.check_positive(self, "alpha")
        field_checks.check_not_negative(self, "orthogonality")
        field_checks.check_fraction(self, "dropout", "beta1", "beta2")
        field_checks.check_one_of(self, "score", SCORES)
        field_checks.check_one_of(self, "profile", tuple(PROFILES))
        if self.score != "sensitivity_uncertainty":
            field_checks.check_without_effect(self, "beta2", f"score: {self.score}")
        if self.score == "magnitude":
            field_checks.check_without_effect(self, "beta1", "score: magnitude")
        if self.hard and self.profile == "released":
            raise ValueError("hard: true, allowed with profile=released: false; the released code removes nothing")
        field_checks.check_budget(self)
        if self.budget is not None and self.profile == "released":
            raise ValueError(f"budget: {self.budget} with profile: released, allowed: null; that code counts ranks")
        self._starts: dict[str, int] = {}  # initial ranks by layer
        self._score = self._new_score()
        self._final = False  # whether the masks are final

    def _new_score(self) -> Score:
        if self.score == "magnitude":
            return Magnitude()
        if self.score == "sensitivity":
            return Sensitivity(beta1=self.beta1)
        return SensitivityUncertainty(beta1=self.beta1, beta2=self.beta2)

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        steps = {"initial_steps": 2, "final_steps": 4, "interval": 2}
        return [
            {"rank": 4, "target_rank": 2, **steps},
            {"rank": 4, "target_rank": 1, "hard": True, "dropout": 0.1, **steps},
            {"rank": 3, "target_rank": 3, **steps},
            {"rank": 4, "target_rank": 2, "score": "sensitivity", "initial_steps": 1, "final_steps": 1},
            {"rank": 4, "target_rank": 2, "profile": "released", "score": "magnitude", **steps},
            {"rank": 3, "target_rank": 2, "budget": 150, **steps},
            {"rank": 2, "target_rank": 1, "budget": 130, "hard": True, **steps},
        ]

    def plan(self, total_steps: int) -> None:
        Cubic(self.rank, self.target_rank, total_steps, self.initial_steps, self.final_steps, self.interval)
        check_acts(self.initial_steps, self.final_steps, self.interval, total_steps)

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

    def build(self, name: str, layer: nn.Module) -> MaskedTriplets:
        # The released code divides by the initial rank plus 1e-5, never by the current rank, because its authors found
        # that rescaling makes results worse.
        rank = self._starts[name]
        scale = self.alpha / (rank + 1e-5)
        return MaskedTriplets(layer, rank, scale, self.dropout, PROFILES[self.profile].masks_evaluation)

    def penalty(self) -> torch.Tensor | None:
        if not self.orthogonality:
            return None
        regularizer = svd_triplets.orthogonality(((a.A, a.B) for a in self.adapters.values()), self.profile)
        return None if regularizer is None else self.orthogonality * regularizer

    def on_update(self, step: Step) -> None:
        PROFILES[self.profile].act(self, step)

    def is_final_form(self, step: Step) -> bool:
        # If a run starts from a finished one, its masks are final from the first step.
        return self._final or step.index >= step.total or self._ends(step)

    def on_train_end(self, step: Step) -> None:
        if not self._final or PROFILES[self.profile].masks_at_end:
            self._mask(self.target)
        self._remove(step.optimizer)
        self._final = True
        self._limit.refuse_missed(self.adapters.values())

    def _ends(self, step: Step) -> bool:
        """Whether the step, whose t counts from 0, is in the final phase."""
        return step.index - 1 >= step.total - self.final_steps

    @property
    def _limit(self) -> Budget:
        return Budget.of(self.budget, self.target_rank * len(self.adapters))

    @property
    def target(self) -> int:
        """Sum of ranks at the end, or of parameters if `budget` is given."""
        return self._limit.target

    def scores(self) -> dict[str, torch.Tensor]:
        """Return S (r,) of every layer's components."""
        return self._score.scores(self.adapters)

    def state_dict(self) -> dict[str, Any]:
        kept = {name: adapter.kept for name, adapter in self.adapters.items()}
        return {"importance": self._score.state_dict(), "kept": kept, "final": self._final}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._score.load_state_dict(state["importance"])
        self._final = state["final"]
        for name, adapter in self.adapters.items():
            adapter.set_kept(state["kept"][name])

    def _budget(self, total_steps: int) -> Cubic:
        """Return the budget's schedule over the run, in units of `target`."""
        start = sum(self._starts[name] * self._limit.price(adapter) for name, adapter in self.adapters.items())
        # Whole ranks may start below a budget in parameters.
        start = max(start, self.target)
        return Cubic(start, self.target, total_steps, self.initial_steps, self.final_steps, self.interval)

    @torch.no_grad()
    def _mask(self, budget: int) -> None:
        """Keep the components with the highest scores, up to `budget`, and set the e of all others to zero."""
        adapters = list(self.adapters.values())
        prices, sizes = [self._limit.price(adapter) for adapter in adapters], [len(adapter.A) for adapter in adapters]
        if sum(price * size for price, size in zip(prices, sizes, strict=True)) > budget:
            PROFILES[self.profile].mask(adapters, list(self.scores().values()), prices, budget)

    def _remove(self, optimizer: torch.optim.Optimizer) -> None:
        """Free the masked components: parameters, gradients, moments, averages."""
        for name, adapter in self.adapters.items():
            if len(adapter.kept_indices) < len(adapter.kept):
                self._score.keep(name, adapter.remove_masked(optimizer))


class Paper:
    """What happens after a step, as in the paper: see the table in the module's docstring."""

    masks_evaluation = True
    masks_at_end = False  # although the masks are final

    @staticmethod
    def act(adalora: AdaLoRA, step: Step) -> None:
        if adalora._final:
            return
        if adalora._ends(step):
            adalora._mask(adalora.target)
            adalora._remove(step.optimizer)
            adalora._final = True
            return
        adalora._score.update(adalora.adapters)
        budget, allocates = adalora._budget(step.total).at(step.index - 1)
        if allocates:
            adalora._mask(budget)
            if adalora.hard:
                adalora._remove(step.optimizer)

    @staticmethod
    def mask(
        adapters: Sequence[MaskedTriplets], scores: Sequence[torch.Tensor], prices: Sequence[int], budget: int
    ) -> None:
        """Mask all but the components with the highest scores that fit into the budget."""
        indices, sizes = within(scores, prices, budget), [len(score) for score in scores]
        for adapter, kept, at in zip(adapters, masks(indices, sizes, adapters[0].e.device), indices, strict=True):
            adapter.mask(kept, at)


class Released(Paper):
    """The same in the released code, which removes nothing and allocates in the final phase too."""

    masks_evaluation = False
    masks_at_end = True

    @staticmethod
    def act(adalora: AdaLoRA, step: Step) -> None:
        if not adalora._ends(step):
            adalora._score.update(adalora.adapters)
        budget, allocates = adalora._budget(step.total).at(step.index - 1)
        if allocates:
            adalora._mask(budget)
        adalora._final = adalora._final or adalora._ends(step)

    @staticmethod
    def mask(
        adapters: Sequence[MaskedTriplets], scores: Sequence[torch.Tensor], prices: Sequence[int], budget: int
    ) -> None:
        together = torch.cat(list(scores))
        if not together.isfinite().all():
            raise ValueError(NOT_FINITE)
        above = together > torch.kthvalue(together, len(together) - budget).values
        for adapter, kept in zip(adapters, above.split([len(score) for score in scores]), strict=True):
            adapter.mask(kept, None)


PROFILES: dict[str, type[Paper]] = {"paper": Paper, "released": Released}
