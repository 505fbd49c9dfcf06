"""Allocated: any score with any allocator, so that one can ask which of the two a method owes its result to.

    ΔW = s Σ_i e_i B_i A_i            form: triplets, starts as AdaLoRA's; A, B ~ N(0, 0.02²), e zero
    ΔW = s Σ_i B_i A_i                form: lora, starts as LoRA's; A kaiming-uniform(√5), B zero
    s = α / (R + 10⁻⁵) for triplets, α / R for lora, R the larger of rank and target_rank throughout

`score` says how much a component or a layer matters (`variants.core.allocation.scores` lists formulas and sources),
`allocator` when ranks go or come (`variants.core.allocation.allocators`). A pair that has no meaning is an error that
says why.

Sources   This composition is the suite's own (reference: Zhang et al. 2023, AdaLoRA, arXiv 2303.10512). With
          `score: sensitivity_uncertainty, allocator: prune, form: triplets` it is AdaLoRA, with
          `score: singular_value, allocator: after, form: lora` PARA (arXiv 2604.27796): LoRA at a peak rank, cut after
          training by one threshold for the singular values of all layers.
Budget    `budget` counts parameters at the end instead of ranks. rank and target_rank then only determine the ratio of
          peak to final ranks (prune, after) or the start (grow).
Family    adaptive ranks
Trains    A and B, and e of triplets
Changes   ranks: as `allocator` says
Checked   adalora: test_allocated test_adaloras_score_and_allocator_are_adalora_to_the_bit; written out: test_allocated
          test_worked_scores_of_components, test_para_keeps_the_largest_singular_values_of_all_layers
Hooks     hold_passes    gives the score passes for losses in later steps
          on_step_begin  lets the score watch the step
          penalty        R(A, B) of AdaLoRA, scaled by γ, if `orthogonality` is set
          on_gradients   allocates before the first step moves anything (allocator before)
          on_update      updates the score, from the step's gradients and the parameters after it; allocates
          on_train_end   allocates, where the run ended early; raises if the budget was not met
Cost      r(in + out) or r(in + out + 1) parameters, r the largest rank of a layer so far, and what the score keeps:
          up to two averages of each parameter. weight_gradient costs a dense product (out×in) for each layer and step,
          ablation_loss two forward passes for each rank whenever the allocator decides.
Decay     A, B and e decay.

Under `allocator: prune` triplets are masked until the final phase and may return, as in AdaLoRA; components of LoRA are
removed at once.

Known     A score of the start sees one batch. New components have no moments, so their first step is up to
          (1 − β₁)/√(1 − β₂) ≈ 3 times the learning rate. A component is added with e or B at zero: ΔW has the reported
          ranks from the step after a round on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import field_checks, layers
from variants.core.adapters import svd_triplets
from variants.core.adapters.adapter import LowRank, check_rank
from variants.core.adapters.masked_triplets import MaskedTriplets
from variants.core.adapters.svd_triplets import INIT_STD, Triplets
from variants.core.allocation.allocators import ALLOCATORS, Allocator, Decision, Layers, refuse_pair
from variants.core.allocation.budget import Budget, above, masks
from variants.core.allocation.score import Score
from variants.core.allocation.scores import SCORES
from variants.core.passes import Passes
from variants.core.variant import AdapterVariant, Step

FORMS = ("triplets", "lora")


@dataclass(kw_only=True)
class Allocated(AdapterVariant):
    """A score with an allocator.

    score: name of a score, or the dotted path of a class of your own. allocator: prune, grow, move, before or after.
    form: "triplets" or "lora", see the module's docstring.
    rank: of every layer at the start (prune, after, grow). target_rank: average over the layers at the end.
    alpha, dropout: as in LoRA. orthogonality: γ, for triplets.
    initial_steps, final_steps, interval: of the allocator, in optimizer steps. pool, exchange: of move.
    beta1, beta2: smoothing factors of the score; null for the score's own.
    budget: trained parameters at the end, in place of the number of ranks (`variants.core.allocation.budget`).
    """

    name: str = "allocated"
    score: str = "sensitivity_uncertainty"
    allocator: str = "prune"
    form: str = "triplets"
    rank: int = 12
    target_rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    orthogonality: float = 0.0
    initial_steps: int = 0
    final_steps: int = 1
    interval: int = 1
    pool: int = 2
    exchange: int = 4
    beta1: float | None = None
    beta2: float | None = None
    budget: int | None = None

    adapters: dict[str, LowRank] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_one_of(self, "allocator", tuple(ALLOCATORS))
        field_checks.check_one_of(self, "form", FORMS)
        field_checks.check_int(self, "rank", "target_rank", "interval", "pool", "exchange")
        field_checks.check_int(self, "initial_steps", "final_steps", at_least=0)
        field_checks.check_positive(self, "alpha")
        field_checks.check_not_negative(self, "orthogonality")
        field_checks.check_fraction(self, "dropout", *(b for b in ("beta1", "beta2") if getattr(self, b) is not None))
        field_checks.check_budget(self)
        score, allocator = field_checks.class_named("score", self.score, SCORES, Score), ALLOCATORS[self.allocator]
        refuse_pair(score, allocator, self.score, SCORES)
        if self.form == "lora":
            field_checks.check_without_effect(self, "orthogonality", "form: lora")
            if score.diagonal:
                raise ValueError(f"score: {self.score} with form: lora, which has no e, allowed: form: triplets")
        if allocator.shape == "below" and self.rank > self.target_rank:
            raise ValueError(
                f"rank: {self.rank} with allocator: {self.allocator}, allowed: at most target_rank, {self.target_rank}"
            )
        if allocator.shape == "above" and self.target_rank > self.rank:
            raise ValueError(f"target_rank: {self.target_rank}, allowed: at most rank, which is {self.rank}")
        if allocator.shape == "same":
            field_checks.check_without_effect(self, "rank", f"allocator: {self.allocator}")
        if allocator.shape != "above" and not self.final_steps:
            raise ValueError(f"final_steps: 0 with allocator: {self.allocator}, allowed: ≥ 1, in which new ranks train")
        self._score = score(**self._taken(score))
        self._allocator: Allocator = allocator(**self._taken(allocator))
        for name in ("initial_steps", "final_steps", "interval", "pool", "exchange", "beta1", "beta2"):
            if not any(name in field_checks.fields_of(part) for part in (score, allocator)):
                field_checks.check_without_effect(self, name, f"score: {self.score} and allocator: {self.allocator}")
        self._starts: dict[str, int] = {}  # initial ranks by layer
        self._most: dict[str, int] = {}  # largest ranks by layer
        self._settled = False  # whether the ranks are final
        self._moved = 0  # ranks that have moved from one layer to another

    def _taken(self, part: type) -> dict[str, Any]:
        """Return the settings that a score or allocator has fields for."""
        return {
            name: value for name in field_checks.fields_of(part) if (value := getattr(self, name, None)) is not None
        }

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        steps = {"initial_steps": 2, "final_steps": 4, "interval": 2}
        prune = {"allocator": "prune", "form": "triplets", "rank": 4, "target_rank": 2, **steps}
        grow = {"allocator": "grow", "form": "triplets", "rank": 1, "target_rank": 3, "final_steps": 3, "interval": 2}
        move = {"allocator": "move", "form": "triplets", "target_rank": 4, "initial_steps": 1, "interval": 3}
        before = {"allocator": "before", "target_rank": 3}
        after = {"allocator": "after", "form": "triplets", "rank": 4, "target_rank": 2}
        return [
            {"score": "sensitivity_uncertainty", **prune, "orthogonality": 0.1},
            {"score": "weight_gradient", **grow},
            {"score": "sensitivity_ratio", **prune, "form": "lora", "dropout": 0.1},
            {"score": "frobenius_share", **prune, "budget": 150},
            {"score": "fisher", **prune, "beta1": 0.5, "final_steps": 0},
            {"score": "random", **prune},
            {"score": "spectral_entropy", **grow, "budget": 150},
            {"score": "gradient_norm", **grow, "form": "lora"},
            {"score": "sensitivity", **move, "exchange": 2, "final_steps": 2},
            {"score": "component_norm", **move, "form": "lora", "exchange": 2, "final_steps": 2, "budget": 235},
            {"score": "weight_gradient", **before, "form": "lora"},
            {"score": "gradient_norm", **before, "budget": 190},
            {"score": "magnitude", **after},
            {"score": "singular_value", **after},
            {"score": "singular_value", **after, "form": "lora", "budget": 130},
            {"score": "uniform", **after, "form": "lora"},
            {"score": "ablation_loss", **move, "form": "lora", "exchange": 2, "final_steps": 2},
        ]

    def plan(self, total_steps: int) -> None:
        self._allocator.plan(total_steps)

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        selected = self.select(model, head)
        sizes = {name: layers.size(layer) for name, layer in selected.items()}
        self._most = {name: min(size) for name, size in sizes.items()}
        shape = self._allocator.shape
        self._starts = dict.fromkeys(selected, self.target_rank if shape == "same" else self.rank)
        if self.budget is not None and shape != "below":
            has_e = self.form == "triplets"
            costs = {name: sum(size) + has_e for name, size in sizes.items()}
            ratio = self.rank / self.target_rank if shape == "above" else 1.0
            self._starts = above(costs, self.budget, self._most, ratio)
        for name, layer in selected.items():
            check_rank(self._starts[name], layer)
        self._check_room(sizes)

    def _check_room(self, sizes: Mapping[str, tuple[int, int]]) -> None:
        """Raise `ValueError` if the ranks can't become what they should."""
        if self._allocator.shape == "below":
            prices = {name: 1 if self.budget is None else sum(size) + 1 for name, size in sizes.items()}
            start, most = (sum(ranks[n] * prices[n] for n in sizes) for ranks in (self._starts, self._most))
            target = self.budget or self.target_rank * len(sizes)
            field_name = "target_rank" if self.budget is None else "budget"
            if not start <= target <= most:
                value = getattr(self, field_name)
                raise ValueError(f"{field_name}: {value}, {target} in all; allowed for these targets: {start} … {most}")
        movable = [name for name, rank in self._starts.items() if rank > 1]
        full = all(self._starts[name] == self._most[name] for name in movable)
        if self._allocator.moves and (len(movable) < 2 or full):
            setting = f"target_rank: {self.target_rank}" if self.budget is None else f"budget: {self.budget}"
            raise ValueError(
                f"{setting} for {len(sizes)} layers leaves no rank that can move, allowed: one with which two layers "
                "have rank 2 or more, and one of them less than its size allows"
            )

    def build(self, name: str, layer: nn.Module) -> LowRank:
        rank = self._starts[name]
        largest = rank if self._allocator.shape == "above" else self.target_rank
        if self.form == "lora":
            return LowRank(layer, rank, self.alpha / largest, self.dropout)
        scale = self.alpha / (largest + 1e-5)
        if self.allocator == "prune":
            return MaskedTriplets(layer, rank, scale, self.dropout, masks_evaluation=True)
        return Triplets(layer, rank, scale, self.dropout)

    @property
    def _budget(self) -> Budget:
        return Budget.of(self.budget, self.target_rank * len(self.adapters))

    def _layers(self) -> Layers:
        """Return what the allocator may know. The ranks count masked components too."""
        budget = self._budget
        prices = {name: budget.price(adapter) for name, adapter in self.adapters.items()}
        start = sum(self._starts[name] * price for name, price in prices.items())
        return Layers({n: len(a.A) for n, a in self.adapters.items()}, self._most, prices, start, budget)

    def grows_by(self) -> int:
        budget, adapters = self._budget, list(self.adapters.values())
        mean = 1.0 if budget.in_parameters else sum(adapter.cost for adapter in adapters) / len(adapters)
        return max(0, round((budget.target - budget.total(adapters)) * mean))

    def needs_whole_weights(self) -> str | None:
        return f"score: {self.score}" if self._score.weights else None

    def hold_passes(self, passes: Passes[Any]) -> None:
        self._score.hold_passes(passes)

    def penalty(self) -> torch.Tensor | None:
        if not self.orthogonality:
            return None
        regularizer = svd_triplets.orthogonality(((a.A, a.B) for a in self.adapters.values()), "paper")
        return None if regularizer is None else self.orthogonality * regularizer

    def on_step_begin(self, step: Step) -> None:
        if not self._settled:
            self._score.watch(self.adapters)

    def on_gradients(self, step: Step) -> None:
        if self._allocator.at_start and not self._settled:
            self._score.update(self.adapters)
            self._allocate(0, step)

    def on_update(self, step: Step) -> None:
        t = step.index - 1  # allocators count from 0
        if self._settled or self._allocator.at_start:
            return
        if not self._measured(t, step.total):
            self._score.update(self.adapters)
        self._allocate(t, step)

    def _measured(self, t: int, total: int) -> bool:
        """Whether the score is no longer updated, because removed components must not return."""
        return self._allocator.shape != "below" and not self._allocator.at_end and self._settles(t, total)

    def _settles(self, t: int, total: int) -> bool:
        return self._allocator.settled(t, total, self._layers())

    def _allocate(self, t: int, step: Step) -> None:
        """Decide and carry out what changes after step t."""
        settles = self._settles(t, step.total)
        if self._allocator.due(t, step.total):
            decision = self._allocator.decide(t, step.total, self._score.scores(self.adapters), self._layers())
            if decision is not None:
                self._carry_out(decision, step.optimizer)
        if settles:
            self._remove_masked(step.optimizer)
        self._settled = settles

    def is_final_form(self, step: Step) -> bool:
        # If a run starts from a finished one, its ranks are final from the first step.
        return self._settled or step.index >= step.total or self._settles(step.index - 1, step.total)

    def on_train_end(self, step: Step) -> None:
        if not self._settled:
            self._allocate(step.total, step)
        if self._allocator.moves and not self._moved:
            raise RuntimeError("score: no rank has moved from one layer to another")
        self._budget.refuse_missed(self.adapters.values())

    @torch.no_grad()
    def _carry_out(self, decision: Decision, optimizer: torch.optim.Optimizer) -> None:
        if self.allocator == "prune" and self.form == "triplets":
            self._mask(decision)
            return
        for name, adapter in self.adapters.items():
            kept, gained = decision.kept[name], decision.gained[name]
            removed = len(adapter.A) - len(kept)
            if removed:
                index = torch.tensor(list(kept), dtype=torch.int64, device=adapter.A.device)
                adapter.keep(index, optimizer)
                self._score.keep(name, index)
            if gained:
                self._append(adapter, gained, optimizer)
                self._score.append(name, gained)
            self._moved += max(0, gained - removed)

    def _append(self, adapter: LowRank, count: int, optimizer: torch.optim.Optimizer) -> None:
        """Append `count` components, which start as the first ones did."""
        a, b = adapter.A.new_empty(count, adapter.in_features), adapter.B.new_zeros(adapter.out_features, count)
        if adapter.e is None:
            nn.init.kaiming_uniform_(a, a=5**0.5)
        else:
            a.normal_(std=INIT_STD), b.normal_(std=INIT_STD)
        adapter.append(a, b, adapter.A.new_zeros(count), optimizer)

    def _mask(self, decision: Decision) -> None:
        adapters = list(self._masked().values())
        sizes, indices = [len(a.A) for a in adapters], [list(decision.kept[name]) for name in self.adapters]
        for adapter, kept, at in zip(adapters, masks(indices, sizes, adapters[0].e.device), indices, strict=True):
            adapter.mask(kept, at)

    def _remove_masked(self, optimizer: torch.optim.Optimizer) -> None:
        for name, adapter in self._masked().items():
            if len(adapter.kept_indices) < len(adapter.kept):
                self._score.keep(name, adapter.remove_masked(optimizer))

    def _masked(self) -> dict[str, MaskedTriplets]:
        return {name: adapter for name, adapter in self.adapters.items() if isinstance(adapter, MaskedTriplets)}

    def state_dict(self) -> dict[str, Any]:
        return {
            "score": self._score.state_dict(),
            "ranks": {name: len(adapter.A) for name, adapter in self.adapters.items()},
            "kept": {name: adapter.kept for name, adapter in self._masked().items()},
            "settled": self._settled,
            "moved": self._moved,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._score.load_state_dict(state["score"])
        self._settled, self._moved = state["settled"], state["moved"]
        for name, adapter in self.adapters.items():
            if isinstance(adapter, MaskedTriplets):
                adapter.set_kept(state["kept"][name])
            else:
                adapter.reshape(state["ranks"][name])
