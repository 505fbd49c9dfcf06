"""Masked: any source of a mask in any scope by any schedule, so that one can ask which of them a result is owed to.

    y = (W + ΔW) x        ΔW trained at k entries of W, zero at the start

`source` says what an entry scores (`variants.core.masks.sources`), `scope` which entries compete
(`variants.core.masks.scopes`), `schedule` when the mask changes (`variants.core.masks.schedules`). A triple that has no
meaning is an error that says why (`variants.core.masks.triples`).

Sources   This composition is the suite's own; parts name theirs (reference: Evci et al. 2020, "Rigging the Lottery",
          arXiv 1911.11134). Bit for bit equal are: random or magnitude in tensor by sides, fixed, and
          SHiRA; low_rank in tensor by sides, refresh, and LIFT; magnitude or gradient in row by rows, fixed, and
          NeuroAda or GPS; fisher or true_fisher in global, fixed, and FISH without biases; change in global, fixed, and
          LT-SFT without biases and l1.
Budget    `budget` replaces density: exactly so many entries in tensor, global and row; in block, subnet and channel as
          many as whole units allow, so less than one unit below it.
Family    sparse
Trains    k entries of W; all of them in a dense phase (gradual, change)
Changes   mask: as `schedule` says
Checked   named methods: test_masked test_a_named_methods_triple_is_that_method_to_the_bit; written out: test_masks
          test_each_scope_chooses_what_a_sort_would, test_masked test_an_exchange_is_rigls, test_masks
          test_scores_are_their_formulas
Hooks     before_training  measures gradients, Fisher information or inputs, if the source needs them, and chooses
          on_step_begin    decides whether to collect gradients for a choice in training
          on_gradients     adds them up
          on_update        changes the mask, where the schedule says so
          on_train_end     raises if the mask is not what it should be
Cost      k parameters, moments and indices; W + ΔW in each pass, as SHiRA. A dense phase has gradients and moments of
          every entry. Scores take a copy of every weight while a mask is chosen, low_rank a singular value
          decomposition; steps whose gradients are collected form them densely. After an entry has left under refresh or
          localise, ΔW is kept as a second matrix beside W.
Decay     values decay, towards the base model.
Known     Scores of gradients are those of the adapters' layers alone, before clipping; under gradual, where the values'
          own gradients score, after it. A choice in training sees the gradients of the last `collect` steps. Entries
          that come have no moments, so their first step is up to (1 − β₁)/√(1 − β₂) ≈ 3 times the learning rate. Under
          refresh and localise more entries change than are trained: `report` has their number. Under `change` the head
          is rewound, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import collectives, field_checks, layers, target_modules
from variants.core.adapters.drifting_delta import DriftingDelta
from variants.core.adapters.sparse_delta import check_finite
from variants.core.allocation.budget import check_range
from variants.core.masks.schedules import SCHEDULES, Gradual, Rewind, RigL, Schedule
from variants.core.masks.scopes import SCOPES, SHARES, Chosen, Count, Scope, density
from variants.core.masks.sources import SOURCES, Scores, Source
from variants.core.masks.triples import refuse_triple
from variants.core.passes import Passes
from variants.core.variant import AdapterVariant, Step

AXES = ("output", "input")
PARTS = {  # fields that are settings of a source, scope or schedule
    "source": ("seed", "filter_rank", "samples", "collect"),
    "scope": ("share", "block", "axis", "group"),
    "schedule": ("initial_steps", "final_steps", "interval", "regrow"),
}


@dataclass(kw_only=True)
class Masked(AdapterVariant):
    """Any mask source in any scope by any schedule; or a source of your own, by its dotted path.

    density: k as a fraction of the entries of all adapted layers. seed: of source random, and of rigl's first mask.
    filter_rank: of low_rank. samples: training rows that fisher and true_fisher see before training.
    collect: steps whose gradients or inputs are summed before a choice.
    share: what a layer's part of k is proportional to (tensor, row): "entries", "sides" (out + in) or "rows".
    block: side of a block. axis, group: of channels, see `variants.core.masks.scopes`.
    initial_steps, final_steps, interval, regrow: see `variants.core.masks.schedules`.
    budget: trained parameters at the end, in place of density (`variants.core.allocation.budget`).
    """

    name: str = "masked"
    source: str = "magnitude"
    scope: str = "tensor"
    schedule: str = "fixed"
    density: float = 0.01
    seed: int = 0
    filter_rank: int = 32
    samples: int = 1024
    collect: int = 1
    share: str = "entries"
    block: int = 16
    axis: str = "output"
    group: int = 1
    initial_steps: int = 1
    final_steps: int = 1
    interval: int = 10
    regrow: float = 0.3
    budget: int | None = None

    adapters: dict[str, DriftingDelta] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_one_of(self, "scope", tuple(SCOPES))
        field_checks.check_one_of(self, "schedule", tuple(SCHEDULES))
        field_checks.check_one_of(self, "share", SHARES)
        field_checks.check_one_of(self, "axis", AXES)
        numbers = ("filter_rank", "samples", "collect", "block", "group", "initial_steps", "final_steps", "interval")
        field_checks.check_int(self, *numbers)
        field_checks.check_int(self, "seed", at_least=0)
        for name in ("density", "regrow"):
            value = getattr(self, name)
            field_checks.check(name, value, 0 < value <= 1, f"0 < {name} ≤ 1")
        field_checks.check_budget(self, "density")
        source = field_checks.class_named("source", self.source, SOURCES, Source)
        scope, schedule = SCOPES[self.scope], SCHEDULES[self.schedule]
        refuse_triple({"source": self.source, "scope": self.scope, "schedule": self.schedule}, source, scope, schedule)
        if source.known == "change" and self.schedule == "fixed":
            schedule = Rewind
        self._source: Source = source(**self._taken(source))
        self._scope: Scope = scope(**self._taken(scope))
        self._schedule: Schedule = schedule(**self._taken(schedule))
        self._check_effects(source, scope, schedule)
        if isinstance(self._schedule, RigL):  # its first mask, as Evci et al. have it
            self._first: Source | None = SOURCES["random"](**self._taken(SOURCES["random"]))
        else:
            self._first = self._source if source.known == "weight" else None
        self.unpredicted = "a dense sum of each layer after entries have moved" if schedule.leaves else ""  # type: ignore[misc]
        self._sizes: dict[str, tuple[int, int]] = {}
        self._counts: dict[str, Count] = {}  # of the final mask
        self._settled = not schedule.dense  # whether the mask has its final size
        self._choices = 0  # so far
        self._sums: dict[str, torch.Tensor] = {}  # what a choice in training measures, by layer
        self._before: Scores = {}  # scores that were measured before training, while they are needed
        self._head: dict[str, nn.Parameter] = {}
        self._head_before: dict[str, torch.Tensor] = {}  # until the rewind

    def _taken(self, part: type) -> dict[str, Any]:
        """Return the settings that a source, scope or schedule has fields for."""
        return {name: getattr(self, name) for name in field_checks.fields_of(part) if hasattr(self, name)}

    def _check_effects(self, source: type[Source], scope: type[Scope], schedule: type[Schedule]) -> None:
        parts = {"source": source, "scope": scope, "schedule": schedule}
        for part, names in PARTS.items():
            for name in names:
                if name == "seed" and schedule is RigL:
                    continue
                if name not in field_checks.fields_of(parts[part]):
                    field_checks.check_without_effect(self, name, f"{part}: {getattr(self, part)}")
        collected = source.known == "gradients" and self.schedule != "fixed"
        if self._source_measures_late and source is SOURCES["fisher"]:
            field_checks.check_without_effect(self, "samples", f"schedule: {self.schedule}")
        if self.schedule == "fixed" and source is SOURCES["fisher"]:
            field_checks.check_without_effect(self, "collect", "schedule: fixed")
        if collected and self.collect > (most := min(self.initial_steps, self.interval)):
            raise ValueError(
                f"collect: {self.collect} with initial_steps: {self.initial_steps} and interval: {self.interval}, "
                f"allowed: at most {most}, the steps before a change"
            )

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        early = {"initial_steps": 2, "interval": 3}
        return [
            {"source": "gradient", "schedule": "rigl", "scope": "global", "density": 0.3, **early},
            {"density": 0.3},
            {"source": "low_rank", "schedule": "refresh", "filter_rank": 2, "share": "sides", "density": 0.3, **early},
            {"source": "weight_gradient", "scope": "row", "budget": 101, "collect": 2},
            {"source": "fisher", "scope": "block", "block": 2, "samples": 8, "density": 0.3},
            {"source": "activation", "scope": "channel", "axis": "input", "budget": 101},
            {"source": "change", "scope": "global", "budget": 101, "initial_steps": 3},
            {"source": "true_fisher", "schedule": "gradual", "samples": 4, "density": 0.3, **early},
            {"source": "fisher", "schedule": "gradual", "scope": "subnet", "density": 0.3, "collect": 2, **early},
            {"source": "random", "schedule": "rigl", "scope": "row", "budget": 111, "regrow": 0.6, **early},
            {"source": "gradient", "schedule": "localise", "scope": "subnet", "density": 0.3, "collect": 2, **early},
        ]

    def plan(self, total_steps: int) -> None:
        self._schedule.plan(total_steps)

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        self._sizes = {name: layers.size(layer) for name, layer in self.select(model, head).items()}
        self._source.check(self._sizes)
        self._scope.check(self._sizes)
        if self.budget is not None:
            check_range(self.budget, 1, sum(rows * columns for rows, columns in self._sizes.values()))
        total = density(self.density, self._sizes) if self.budget is None else self.budget
        self._counts = self._scope.counts(self._sizes, total)

    def build(self, name: str, layer: nn.Module) -> DriftingDelta:
        rows, columns = self._sizes[name]
        units, cost = self._counts[name]
        return DriftingDelta(layer, torch.arange(rows * columns if self._schedule.dense else units * cost))

    @torch.no_grad()
    def attach(self, model: nn.Module, head: Sequence[str] = ()) -> nn.Module:
        model = super().attach(model, head)
        if isinstance(self._schedule, Rewind):
            self._head = {name: p for name, p in model.named_parameters() if target_modules.inside(name, head)}
            self._head_before = {name: p.detach().clone() for name, p in self._head.items()}
        on_device = not any(adapter.weight.is_meta for adapter in self.adapters.values())
        if not self._schedule.dense and self._first is not None and on_device:
            self._choose_first(self._first)
        return model

    def _choose_first(self, source: Source) -> None:
        """Choose by the weights, layer by layer if the scope allows it: scores take as much memory as the weights."""
        groups = [list(self.adapters)] if self._scope.pooled else [[name] for name in self.adapters]
        for names in groups:
            weights = {name: self.adapters[name].layer_kind.matrix.detach() for name in names}
            check_finite(weights, "source: the weight of {} is not finite")
            self._place({name: source.of_weight(name, weight) for name, weight in weights.items()})

    @property
    def _source_measures_late(self) -> bool:
        """Whether the source's first choice comes in training, by its gradients there."""
        return self._source.known == "gradients" and self.schedule in ("rigl", "gradual")

    def _place(self, scores: Scores) -> None:
        """Choose the first mask, before there is an optimizer."""
        for name, indices in self._scope.choose(scores, self._counts).items():
            self.adapters[name].take_up({"indices": indices})

    @torch.no_grad()
    def before_training(self, passes: Passes[Any]) -> None:
        if self._source.known not in ("passes", "gradients") or self._source_measures_late:
            return
        scores = self._source.before_training(self.adapters, passes)
        check_finite(scores, "source: the score of {} is not finite")
        if self._schedule.dense:
            self._before = scores
        else:
            self._place(scores)

    # -- in training -------------------------------------------------------------------------------

    def on_step_begin(self, step: Step) -> None:
        chooses = self._collects(step)
        dense = isinstance(self._schedule, Gradual)  # all entries that compete have a gradient anyway
        for name, adapter in self.adapters.items():
            adapter.watched, adapter.gradient = name in chooses and not dense, None

    def _collects(self, step: Step) -> Sequence[str]:
        """Return the layers whose gradients this step adds to the next choice, and forget those of the last one."""
        if self._source.known != "gradients" or (isinstance(self._schedule, Gradual) and self._settled):
            return ()
        at = self._schedule.next(step.index, step.total)
        collect = getattr(self._source, "collect", 1)
        if at is None or step.index <= at - collect:
            return ()
        if step.index == at - collect + 1:
            self._sums = {}
        return self._schedule.turn(at, list(self.adapters))

    @torch.no_grad()
    def on_gradients(self, step: Step) -> None:
        for name in self._collects(step):
            adapter = self.adapters[name]
            if isinstance(self._schedule, Gradual):
                # A layer that has lost all its entries is not part of the loss.
                gradient = adapter.values.grad if len(adapter.values) else adapter.values.detach()
            else:
                gradient = adapter.gradient
            if gradient is None:
                raise ValueError(f"targets: {name} is not part of the loss; exclude it")
            # Those of parameters are summed over the processes already.
            gradient = _spread(adapter, gradient) if gradient.ndim == 1 else collectives.all_reduce_sum(gradient)
            new = self._source.measured(gradient)
            self._sums[name] = self._sums[name] + new if name in self._sums else new
            adapter.gradient = None

    @torch.no_grad()
    def on_update(self, step: Step) -> None:
        if isinstance(self._schedule, Rewind):
            if not self._settled and self._schedule.changes(step.index, step.total):
                self._rewind(step.optimizer)
        elif isinstance(self._schedule, Gradual):
            self._prune(step)
        elif self._schedule.changes(step.index, step.total):
            self._choose_anew(step)

    def _scores_now(self, names: Sequence[str]) -> Scores:
        """Return the scores (out, in) of all entries of these layers. Entries that do not compete may have any."""
        found, known = {}, self._source.known
        for name in names:
            adapter = self.adapters[name]
            if known == "passes":
                found[name] = self._before[name]
            elif known == "change":
                found[name] = adapter.dense().abs()
            elif known == "weight":
                found[name] = self._source.of_weight(name, self._weight(adapter), self._choices + 1)
            elif name in self._sums:
                found[name] = self._source.score(
                    self._sums[name], self._weight(adapter) if self._source.weights else None
                )
        check_finite(found, "source: the score of {} is not finite")
        return found

    @staticmethod
    def _weight(adapter: DriftingDelta) -> torch.Tensor:
        """Return W + ΔW (out, in), as it is now."""
        return adapter.layer_kind.matrix.to(adapter.values.dtype) + adapter.dense()

    def _choose_anew(self, step: Step) -> None:
        names = self._schedule.turn(step.index, list(self.adapters))
        scores = self._scores_now(names)
        if len(scores) < len(names):
            return  # the steps that would have measured them were left out
        if isinstance(self._schedule, RigL):
            current = {name: self.adapters[name].indices for name in names}
            values = {name: self.adapters[name].dense().abs() for name in names}
            chosen = self._scope.exchange(values, scores, current, self._schedule.fraction(step.index, step.total))
        else:
            chosen = self._scope.choose(scores, {name: self._counts[name] for name in names})
        self._move(chosen, step.optimizer)

    def _move(self, chosen: Chosen, optimizer: torch.optim.Optimizer) -> None:
        for name, indices in chosen.items():
            self.adapters[name].move(indices, optimizer, leave=self._schedule.leaves)
        self._choices, self._sums = self._choices + 1, {}

    def _prune(self, step: Step) -> None:
        assert isinstance(self._schedule, Gradual)
        if self._settled or not self._schedule.changes(step.index, step.total):
            return
        whole = sum(rows * columns for rows, columns in self._sizes.values())
        target = sum(units * cost for units, cost in self._counts.values())
        total = self._schedule.entries(step.index, step.total, whole, target)
        within = {name: adapter.indices for name, adapter in self.adapters.items()}
        counts = self._counts if total == target else self._scope.fewer(self._sizes, total, within, self._counts)
        scores = self._scores_now(list(self.adapters))
        if len(scores) < len(self.adapters):
            return
        self._move(self._scope.choose(scores, counts, within), step.optimizer)
        self._settled = total == target
        if self._settled:
            self._before = {}

    def _rewind(self, optimizer: torch.optim.Optimizer) -> None:
        """End the dense phase: choose the entries that changed most, and set these and the head to their start."""
        self._move(self._scope.choose(self._scores_now(list(self.adapters)), self._counts), optimizer)
        for adapter in self.adapters.values():
            adapter.values.zero_()
        for name, p in self._head.items():
            p.copy_(self._head_before[name])
        self._settled, self._head_before = True, {}
        optimizer.state.clear()

    def needs_whole_weights(self) -> str | None:
        at_start_alone = self._source.known == "weight" and self.schedule == "fixed"
        reads = self._source.weights and not at_start_alone
        return f"source: {self.source}" if reads else None

    def is_final_form(self, step: Step) -> bool:
        return self._settled

    def on_train_end(self, step: Step) -> None:
        if not self._settled:
            raise RuntimeError("mask: it has not reached its size, because too few steps had finite gradients")

    def report(self) -> dict[str, float]:
        if not self._schedule.leaves:
            return {}
        return {"changed_entries": sum(len(adapter.changed()) for adapter in self.adapters.values())}

    def state_dict(self) -> dict[str, Any]:
        check_finite(self._sums, "source: a gradient of {} is not finite")
        # A figure of the mask needs one without a past.
        entries = "entries" if self._schedule.leaves else "layers"
        return {
            entries: {name: adapter.saved() for name, adapter in self.adapters.items()},
            "settled": self._settled,
            "choices": self._choices,
            "sums": dict(self._sums),
            "before": dict(self._before),
            "head": dict(self._head_before),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._settled, self._choices = state["settled"], state["choices"]
        for name, saved in state["entries" if self._schedule.leaves else "layers"].items():
            self.adapters[name].take_up(saved)
        self._sums, self._before = (
            {name: tensor.to(self.adapters[name].values.device) for name, tensor in state[key].items()}
            for key in ("sums", "before")
        )
        self._head_before = {name: tensor.to(self._head[name].device) for name, tensor in state["head"].items()}

    def start_from(self, state: Mapping[str, Any]) -> None:
        self.load_state_dict({**state, "sums": {}})


def _spread(adapter: DriftingDelta, at_entries: torch.Tensor) -> torch.Tensor:
    """Return a vector (nnz,) at an adapter's entries as a matrix (out, in), with zeros elsewhere."""
    size = adapter.out_features, adapter.in_features
    return at_entries.new_zeros(size[0] * size[1]).index_copy_(0, adapter.indices, at_entries).view(size)
