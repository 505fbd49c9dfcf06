"""Sparse-masked LoRA: the entries of A and B are pruned by a learned mask.

    y = W x + (α/r) (M_B ∘ B)(M_A ∘ A) dropout(x)        A: r×in, kaiming-uniform(√5)    B: out×r, zero

  | score of an entry v with gradient g | |
  |---|---|
  | magnitude | abs(v) |
  | gradient | abs(g), smoothed: s ← β s + (1 − β) abs(g) |
  | sensitivity | abs(v g), smoothed in the same way |
  | random | drawn once with `seed` |

  | schedule | |
  |---|---|
  | one_shot | dense until step `initial_steps`, then the entries with the highest scores |
  | gradual | dense until then, fewer every `interval` steps along a cubic curve, until `final_steps` before the end |
  | rigl | the final number from the start, drawn with `seed`; every `interval` steps between the two, the fraction |
  | | `regrow` · (1 + cos(π t/(T − t_f)))/2 of entries with the smallest scores is replaced by the masked entries |
  | | with the largest abs(g), which start at zero and without moments |

Sources   Zhu and Gupta 2017, arXiv 1710.01878 (the cubic curve); Evci et al. 2020, "Rigging the Lottery",
          arXiv 1911.11134 (rigl); Molchanov et al. 2019, arXiv 1906.10771 (sensitivity), on the factors of LoRA.
          A common form of the methods of sparse LoRA papers; it reproduces no single paper's code.
Budget    `budget` replaces density: exactly so many entries at the end.
Family    sparse
Trains    entries of A and B
Changes   mask: entries are pruned or exchanged in training
Checked   lora: test_sparse test_density_one_is_lora; written out: test_sparse
          test_magnitude_keeps_the_largest_of_each_factor, test_sensitivity_smooths_weight_times_gradient
Hooks     on_step_begin  decides whether to collect gradients of masked entries (rigl)
          on_gradients   updates the scores
          on_update      updates the mask
          on_train_end   raises if the number of entries is wrong
Cost      as LoRA, plus building A and B from their entries: twice r(in + out) numbers per layer and pass.
          Values, gradients and moments have as many entries as the mask. At its allocations rigl needs the dense
          gradients of A and B, which the backward pass forms anyway.
Decay     A and B decay entry by entry, as LoRA's do: at density 1 both methods are equal bit for bit.
Known     scope global ranks the entries of all A together and those of all B together, but not A with B: B starts at
          zero, so magnitude would remove all of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import collectives, field_checks, layers, seeding
from variants.core.adapters.adapter import check_rank
from variants.core.adapters.masked_factors import PARTS, MaskedFactors
from variants.core.adapters.sparse_delta import check_finite, largest_of_groups
from variants.core.allocation.budget import apportion, check_range
from variants.core.masks.schedules import Gradual, Periodic, RigL
from variants.core.variant import AdapterVariant, Step

NOT_FINITE = "importance: a gradient of {} was not finite"
SCORES = ("magnitude", "gradient", "sensitivity", "random")
SMOOTHED = ("gradient", "sensitivity")
SCOPES = ("layer", "global")
SCHEDULES = ("one_shot", "gradual", "rigl")


@dataclass(kw_only=True)
class SparseLoRA(AdapterVariant):
    """LoRA under a learned mask.

    rank, alpha, dropout: as in LoRA. density: fraction of the entries of A and B that remains.
    score, schedule: see the module's docstring. beta: β of smoothed scores.
    scope: "layer": every A and every B keeps the same fraction; "global": the best entries of all A, and of all B.
    initial_steps, final_steps, interval: steps before the first change of the mask, after the last, between changes.
    regrow: fraction that is exchanged at the start (rigl). seed: of random scores and of rigl's first mask.
    budget: trained parameters at the end, in place of density (`variants.core.allocation.budget`).
    """

    name: str = "sparse"
    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.0
    density: float = 0.5
    score: str = "magnitude"
    scope: str = "layer"
    schedule: str = "gradual"
    initial_steps: int = 1
    final_steps: int = 1
    interval: int = 1
    beta: float = 0.85
    regrow: float = 0.3
    seed: int = 0
    budget: int | None = None

    adapters: dict[str, MaskedFactors] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank", "interval", "initial_steps", "final_steps")
        field_checks.check_int(self, "seed", at_least=0)
        field_checks.check_positive(self, "alpha", "density", "regrow")
        field_checks.check_fraction(self, "dropout", "beta")
        for name in ("density", "regrow"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name}: {getattr(self, name)!r}, allowed: 0 < {name} ≤ 1")
        field_checks.check_one_of(self, "score", SCORES)
        field_checks.check_one_of(self, "scope", SCOPES)
        field_checks.check_one_of(self, "schedule", SCHEDULES)
        field_checks.check_budget(self, "density")
        if self.schedule != "rigl":
            field_checks.check_without_effect(self, "regrow", f"schedule: {self.schedule}")
        if self.schedule == "one_shot":
            field_checks.check_without_effect(self, "interval", "schedule: one_shot")
            field_checks.check_without_effect(self, "final_steps", "schedule: one_shot")
        if self.score not in SMOOTHED:
            field_checks.check_without_effect(self, "beta", f"score: {self.score}")
        if self.schedule != "rigl" and self.score != "random":
            field_checks.check_without_effect(self, "seed", f"score: {self.score}")
        if self.schedule == "rigl" and self.score == "random":
            raise ValueError("score: 'random' with schedule: rigl, allowed: magnitude, gradient, sensitivity")
        steps = {name: getattr(self, name) for name in ("initial_steps", "final_steps", "interval")}
        if self.schedule == "rigl":
            self._schedule: Periodic = RigL(**steps, regrow=self.regrow)
        else:
            self._schedule = Gradual(**steps) if self.schedule == "gradual" else Periodic(**steps)
        self._scores: dict[str, torch.Tensor] = {}  # smoothed or drawn, of the unmasked entries, by "layer.part"
        self._moved = 0  # entries that were removed or added so far

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        steps = {"initial_steps": 2, "final_steps": 3}
        return [
            {"rank": 4, **steps},
            {"rank": 4, "score": "sensitivity", "scope": "global", "interval": 3, "dropout": 0.1, **steps},
            {"rank": 4, "schedule": "one_shot", "score": "gradient", "density": 0.7, "initial_steps": 2},
            {"rank": 4, "schedule": "one_shot", "score": "random", "density": 0.6, "seed": 2, "initial_steps": 2},
            {"rank": 4, "schedule": "rigl", "interval": 2, "regrow": 0.5, **steps},
            {"rank": 4, "schedule": "rigl", "score": "sensitivity", "scope": "global", "density": 0.4, **steps},
            {"rank": 5, "budget": 151, **steps},
        ]

    def plan(self, total_steps: int) -> None:
        self._schedule.plan(total_steps)

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        selected = self.select(model, head).values()
        for layer in selected:
            check_rank(self.rank, layer)
        if self.budget is not None:
            check_range(self.budget, 1, self.rank * sum(sum(layers.size(layer)) for layer in selected))

    def build(self, name: str, layer: nn.Module) -> MaskedFactors:
        return MaskedFactors(layer, self.rank, self.alpha / self.rank, self.dropout)

    def attach(self, model: nn.Module, head: Sequence[str] = ()) -> nn.Module:
        model = super().attach(model, head)
        if self.score == "random" or self.schedule == "rigl":
            for name, adapter in self.adapters.items():
                for part in PARTS:
                    key = f"{name}.{part}"
                    self._scores[key] = torch.rand(
                        len(adapter.indices[part]), generator=seeding.generator(self.seed, key)
                    )
        if self.schedule == "rigl":
            self._shrink(self._counts(self.target), self._scores, None)
            self._scores = {}
        return model

    @property
    def target(self) -> int:
        """Number of entries of all layers at the end."""
        return self.budget if self.budget is not None else max(1, round(self.density * self._dense))

    @property
    def _dense(self) -> int:
        return sum(math.prod(shape) for adapter in self.adapters.values() for shape in adapter.shapes.values())

    def on_step_begin(self, step: Step) -> None:
        for adapter in self.adapters.values():
            adapter.gradients = {}
            adapter.watched = self.schedule == "rigl" and self._changes(step)

    @torch.no_grad()
    def on_gradients(self, step: Step) -> None:
        if self.score not in SMOOTHED:
            return
        # An empty layer is not part of the loss.
        values = {key: value for key, value in self._values().items() if value.grad is not None}
        scores = [value.grad for value in values.values() if value.grad is not None]
        if not scores:
            return
        if self.score == "sensitivity":
            scores = list(torch._foreach_mul(scores, list(values.values())))
        new = torch._foreach_mul(torch._foreach_abs(scores), 1 - self.beta)
        before = [self._scores[key] if key in self._scores else torch.zeros_like(values[key]) for key in values]
        smoothed = torch._foreach_add(torch._foreach_mul(before, self.beta), new)
        self._scores |= zip(values, smoothed, strict=True)

    @torch.no_grad()
    def on_update(self, step: Step) -> None:
        if not self._changes(step):
            return
        if isinstance(self._schedule, RigL):
            self._exchange(self._schedule.fraction(step.index, step.total), step.optimizer)
            return
        count = self.target
        if isinstance(self._schedule, Gradual):
            count = self._schedule.entries(step.index, step.total, self._dense, self.target)
        self._shrink(self._counts(count), self._entry_scores(), step.optimizer)

    def _changes(self, step: Step) -> bool:
        """Whether the mask changes after this step."""
        if self.schedule != "rigl" and self._entries <= self.target:
            return False  # from the first step if the run starts from a finished one
        if self.schedule == "one_shot":  # not only at that very step: its gradients may not have been finite
            return step.index >= self.initial_steps
        return self._schedule.changes(step.index, step.total)

    @property
    def _entries(self) -> int:
        """Current number of entries of all layers."""
        return sum(adapter.closed_form() for adapter in self.adapters.values())

    def is_final_form(self, step: Step) -> bool:
        return self._entries == self.target

    def on_train_end(self, step: Step) -> None:
        if self._entries != self.target:
            raise RuntimeError(f"budget: {self._entries} entries are left, the target is {self.target}")
        if not self._moved and self.target < self._dense:
            raise RuntimeError("mask: no entry was ever removed or added")

    def _entry_scores(self) -> dict[str, torch.Tensor]:
        """Return the scores of the unmasked entries, by "layer.part"."""
        values = {key: value.detach() for key, value in self._values().items()}
        if self.score == "magnitude":
            check_finite(values, "mask: a value of {} is not finite")
            return dict(zip(values, torch._foreach_abs(list(values.values())), strict=True))
        check_finite(self._scores, NOT_FINITE)
        return {
            key: self._scores[key].to(value.device) if key in self._scores else torch.zeros_like(value)
            for key, value in values.items()
        }

    def _values(self) -> dict[str, nn.Parameter]:
        """Return the parameters, by "layer.part"."""
        return {f"{n}.{part}": a.get_parameter(part) for n, a in self.adapters.items() for part in PARTS}

    def _groups(self) -> dict[str, list[tuple[str, str]]]:
        """Return the groups whose entries are ranked together, as lists of (layer, part)."""
        if self.scope == "layer":
            return {f"{name}.{part}": [(name, part)] for name in self.adapters for part in PARTS}
        return {part: [(name, part) for name in self.adapters] for part in PARTS}

    def _counts(self, total: int) -> dict[str, int]:
        """Return the number of entries of each group if all have `total`; at most as many as it has now."""
        sizes, current = {}, {}
        for group, members in self._groups().items():
            sizes[group] = sum(math.prod(self.adapters[name].shapes[part]) for name, part in members)
            current[group] = sum(len(self.adapters[name].indices[part]) for name, part in members)
        return apportion(sizes, total, current)

    def _shrink(
        self, counts: Mapping[str, int], scores: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer | None
    ) -> None:
        """Keep the `counts[group]` entries with the highest scores in every group."""
        groups = self._groups()
        of_groups = [[scores[f"{name}.{part}"] for name, part in members] for members in groups.values()]
        chosen = largest_of_groups(of_groups, [counts[group] for group in groups])
        for members, indices in zip(groups.values(), chosen, strict=True):
            for (name, part), kept in zip(members, indices, strict=True):
                self._move(name, part, kept, kept[:0], optimizer)

    def _exchange(self, fraction: float, optimizer: torch.optim.Optimizer) -> None:
        """rigl: replace the entries with the smallest scores by the masked ones with the largest gradients."""
        scores, candidates = self._entry_scores(), self._growth_scores()
        groups, of_kept, of_grown, counts = [], [], [], []
        for members in self._groups().values():
            current = [scores[f"{name}.{part}"] for name, part in members]
            dense = [candidates[f"{name}.{part}"] for name, part in members]
            size = sum(map(len, current))
            if count := min(round(fraction * size), sum(map(len, dense)) - size):
                groups.append(members)
                of_kept.append(current)
                of_grown.append(dense)
                counts.append((size - count, count))
        kept = largest_of_groups(of_kept, [stay for stay, _ in counts])
        grown = largest_of_groups(of_grown, [grow for _, grow in counts])
        for members, kept_of, grown_of in zip(groups, kept, grown, strict=True):
            for (name, part), stay, new in zip(members, kept_of, grown_of, strict=True):
                self._move(name, part, stay, new, optimizer)

    def _growth_scores(self) -> dict[str, torch.Tensor]:
        """Return abs(g) of all entries, by "layer.part"; −1 for unmasked entries, which can't grow."""
        gradients = {}
        for name, adapter in self.adapters.items():
            for part in PARTS:
                gradient = adapter.gradients.get(part)
                if gradient is None:
                    gradient = adapter.A.new_zeros(math.prod(adapter.shapes[part]))
                gradients[f"{name}.{part}"] = collectives.all_reduce_sum(gradient)
        check_finite(gradients, "mask: the gradient of {} is not finite")
        absolute = torch._foreach_abs(list(gradients.values()))
        for (name, part), gradient in zip(((n, p) for n in self.adapters for p in PARTS), absolute, strict=True):
            gradient.index_fill_(0, self.adapters[name].indices[part], -1.0)
        return dict(zip(gradients, absolute, strict=True))

    def _move(
        self, name: str, part: str, kept: torch.Tensor, new: torch.Tensor, optimizer: torch.optim.Optimizer | None
    ) -> None:
        adapter, key = self.adapters[name], f"{name}.{part}"
        self._moved += len(adapter.indices[part]) - len(kept) + len(new)
        adapter.move(part, kept, new, optimizer)
        if key in self._scores:
            self._scores[key] = torch.cat([self._scores[key][kept], self._scores[key].new_zeros(len(new))])

    def state_dict(self) -> dict[str, Any]:
        check_finite(self._scores, NOT_FINITE)
        indices = {name: dict(adapter.indices) for name, adapter in self.adapters.items()}
        # The shapes are fixed; they are for readers without the model, to whom indices mean nothing without them.
        shapes = {n: {part: list(shape) for part, shape in a.shapes.items()} for n, a in self.adapters.items()}
        return {"places": indices, "shapes": shapes, "scores": dict(self._scores), "moved": self._moved}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._scores, self._moved = dict(state["scores"]), state["moved"]
        for name, adapter in self.adapters.items():
            adapter.load_indices(state["places"][name])

    def start_from(self, state: Mapping[str, Any]) -> None:
        self.load_state_dict({**state, "scores": {}})
