"""AROMA: one rank at a time, merged when it rests, until a further one would hardly change the weight.

    y = (W + past) x + (α/r) B A dropout(x)        A: r×in, kaiming-uniform(√5)    B: out×r, zero    r = 1
    inner loop  every `check_every` steps a layer is at rest if ‖B A − its last value‖ < `inner_tolerance` · ‖its last
                value‖, and after `inner_steps` steps in any case; when all layers are:
    outer loop  c = ‖(α/r) B A‖ / ‖W + past‖ of each layer, from its second merge on
                mean of its last `window` c < `outer_tolerance`:  the product is discarded, and the layer has converged
                otherwise:  past += (α/r) B A, a new A, B = 0, and moments are pruned
    the run ends when all layers have converged

Frobenius norms. `reset` and `pruned` are ReLoRA's.

Paper     Sheng et al. 2025, "AROMA: Autonomous Rank-one Matrix Adaptation", EMNLP, arXiv 2504.05343.
Code      ShuDun23/AROMA fb7610e, peft_pretraining/aroma.py, run_glue_aroma.py.
Budget    `budget` replaces rank: ranks as even as integers allow, of the factors that are trained at a time. A layer
          that has converged trains none, so a run in which some do ends below it.
Family    adaptive ranks
Trains    A and B, until their layer has converged
Changes   ranks: grow by merges in training, until a layer converges
Checked   released code: test_aroma test_every_number_of_the_released_code
Hooks     on_step_begin  sets the learning rate of the restarts, if `cycle` asks for them
          on_gradients   checks and merges before the step (profile released)
          on_update      checks and merges after the step (profile paper)
Cost      r(in + out) parameters per layer and the value of B A at the last check (out×in); from the first merge on one
          more matrix of W's size, and a sum that forms W + past in each pass.
Decay     A and B decay, `past` does not.

  | profile | paper | released |
  |---|---|---|
  | last value of B A | of the last check in the round | from the third check on a difference; outlives a merge |
  | merge | after the optimizer's step | before it, so that the old gradient moves the new A and B |

Known     The equations are those of the code without these two slips; the paper's text was not compared. The released
          trainer merges in a distributed run alone, a plain one only prunes moments; here both merge. Its rate restarts
          on a fixed grid (`cycle`), whatever is merged. `outer_tolerance` is relative to ‖W‖, so it depends on the
          backbone. An export has the rank of the sum. The step's clipping counts layers that converge in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from variants.core import field_checks, layers
from variants.core.adapters.restarted import Restarted
from variants.core.allocation import budget
from variants.core.restarts import RESETS, Restarts, after_reset, reset_moments
from variants.core.variant import AdapterVariant, Step

EPS = 1e-9
PROFILES = ("paper", "released")


class Growing(Restarted):
    """ΔW = past + scale · B A, whose factors leave for good in the end.

    of_round: rank of a round. begun: whether B may have left zero in this round.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float) -> None:
        super().__init__(base, rank, scale, dropout)
        self.of_round, self.begun = rank, True

    def restart(self, a: torch.Tensor) -> None:
        super().restart(a)
        self.begun = False

    def leave(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Discard B A and its moments; `past` stays."""
        self.keep(torch.arange(0, device=self.A.device), optimizer)

    @property
    def has_left(self) -> bool:
        return not len(self.A)

    @property
    def rank(self) -> int:
        merged = self.rounds * self.of_round
        return min(merged + (len(self.A) if self.begun else 0), self.in_features, self.out_features)


@dataclass
class Progress:
    """A layer's state. since: checked steps of its round. rests: whether it is at rest. changes: its last c.

    reference: its last value of B A (out, in); None before the first check.
    """

    since: int = 0
    rests: bool = False
    changes: list[float] = field(default_factory=list)
    reference: torch.Tensor | None = None


@dataclass(kw_only=True)
class AROMA(AdapterVariant):
    """AROMA.

    rank: of a round. alpha, dropout: as in LoRA. check_every: steps between two checks. inner_steps: of a round, at
    most. inner_tolerance, outer_tolerance, window: see the module's docstring. reset, pruned: of moments after a merge.
    cycle: steps between two restarts of a cosine schedule that replaces the run's; null leaves the run's.
    first_warmup, restart_warmup, least_rate: of that schedule: its warm-ups, at the start and after a restart, and its
    last factor. profile: "paper" or "released", see the module's docstring.
    budget: trained parameters, in place of rank (`variants.core.allocation.budget`).
    """

    unpredicted: ClassVar[str] = "a dense matrix of each layer at the first check, another after the first merge"

    name: str = "aroma"
    rank: int = 1
    alpha: float = 4.0
    dropout: float = 0.0
    check_every: int = 10
    inner_steps: int = 1000
    inner_tolerance: float = 0.1
    outer_tolerance: float = 0.005
    window: int = 1
    reset: str = "random"
    pruned: float = 0.999
    cycle: int | None = None
    first_warmup: int = 0
    restart_warmup: int = 0
    least_rate: float = 0.1
    profile: str = "paper"
    budget: int | None = None

    adapters: dict[str, Growing] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank", "check_every", "window")
        field_checks.check_int(self, "first_warmup", "restart_warmup", at_least=0)
        field_checks.check_positive(self, "alpha", "inner_tolerance", "outer_tolerance")
        field_checks.check_fraction(self, "dropout", "pruned", "least_rate")
        field_checks.check_one_of(self, "reset", RESETS)
        field_checks.check_one_of(self, "profile", PROFILES)
        checks = 2 if self.profile == "paper" else 1  # of a round, of which the last one has a reference
        field_checks.check_int(self, "inner_steps", at_least=checks + 1)
        most = (self.inner_steps - 1) // checks
        allowed = f"at most {most} with inner_steps: {self.inner_steps}, or inner_tolerance is never compared"
        field_checks.check("check_every", self.check_every, self.check_every <= most, allowed)
        if self.reset == "zero":
            field_checks.check_without_effect(self, "pruned", "reset: zero")
        if self.cycle is None:
            for name in ("first_warmup", "restart_warmup", "least_rate"):
                field_checks.check_without_effect(self, name, "cycle: null")
        else:
            field_checks.check_int(self, "cycle", at_least=self.restart_warmup + 1)
        field_checks.check_budget(self, "rank")
        self._ranks: dict[str, int] = {}
        self._progress: dict[str, Progress] = {}

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        steps = {"inner_steps": 5, "check_every": 2}
        restarts = {"cycle": 6, "restart_warmup": 1, "first_warmup": 2}
        return [
            {"outer_tolerance": 0.02, **steps},
            {"rank": 2, "dropout": 0.1, "reset": "zero", "inner_tolerance": 0.9, **restarts, **steps},
            {"profile": "released", "inner_tolerance": 0.9, "outer_tolerance": 0.1, "window": 2, **steps},
            {"outer_tolerance": 10.0, "reset": "magnitude", "pruned": 0.8, **steps},  # all layers converge
            {"budget": 101, "outer_tolerance": 1e-6, **steps},
        ]

    def plan(self, total_steps: int) -> None:
        if self.inner_steps >= total_steps:
            raise ValueError(f"inner_steps: {self.inner_steps}, allowed: fewer than the run's {total_steps} steps")

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        self._ranks = budget.even_ranks(self.select(model, head), self.rank, self.budget)

    def build(self, name: str, layer: nn.Module) -> Growing:
        self._progress[name] = Progress()
        return Growing(layer, self._ranks[name], self.alpha / self._ranks[name], self.dropout)

    def needs_whole_weights(self) -> str | None:
        return f"outer_tolerance: {self.outer_tolerance}"

    def on_step_begin(self, step: Step) -> None:
        if self.cycle is not None:
            self.curve(step.total).replace_schedule(step, "cycle")

    def curve(self, total: int) -> Restarts:
        """Return the learning rate's factor over the `total` steps of a run."""
        assert self.cycle is not None
        return Restarts(total, self.first_warmup, self.restart_warmup, self.cycle, self.least_rate)

    def on_gradients(self, step: Step) -> None:
        if self.profile == "released":
            self._round(step.optimizer)

    def on_update(self, step: Step) -> None:
        for adapter in self.adapters.values():
            adapter.begun = True
        if self.profile == "paper":
            self._round(step.optimizer)

    @torch.no_grad()
    def _round(self, optimizer: torch.optim.Optimizer) -> None:
        if not self.is_over() and self._all_rest():
            self._merge(optimizer)

    def training(self) -> dict[str, Growing]:
        """Return the adapters of the layers that have not converged."""
        return {name: adapter for name, adapter in self.adapters.items() if not adapter.has_left}

    def _all_rest(self) -> bool:
        """Check the layers; return whether the round ends."""
        waiting, due = False, []
        for name in self.training():
            progress = self._progress[name]
            if progress.rests:
                continue
            progress.since += 1
            if progress.since >= self.inner_steps:
                progress.since = 0
            elif progress.since % self.check_every:
                waiting = True
            else:
                due.append(name)
        for name, change in self._changes(due).items():
            if change < self.inner_tolerance:
                self._progress[name].rests, self._progress[name].since = True, 0
            else:
                waiting = True
        return not waiting

    def _changes(self, names: Sequence[str]) -> dict[str, float]:
        """Return ‖B A − reference‖ / ‖reference‖ of the layers `names`, infinite without a reference; renew it."""
        found: dict[str, torch.Tensor] = {}
        for name in names:
            adapter, progress = self.adapters[name], self._progress[name]
            product, before = adapter.B @ adapter.A, progress.reference
            progress.reference = product
            if before is None:
                found[name] = product.new_tensor(float("inf"))
                continue
            found[name] = (product - before).norm() / (before.norm() + EPS)
            if self.profile == "released":
                progress.reference = product - before
        return dict(zip(names, torch.stack(list(found.values())).tolist(), strict=True)) if found else {}

    def _merge(self, optimizer: torch.optim.Optimizer) -> None:
        training = self.training()
        for name, change in self._weight_changes(training).items():
            self._progress[name].changes = [*self._progress[name].changes, change][-self.window :]
        for name, adapter in training.items():
            progress = self._progress[name]
            progress.rests = False
            if self.profile == "paper":
                progress.reference = None
            if len(progress.changes) == self.window and sum(progress.changes) / self.window < self.outer_tolerance:
                progress.reference = None
                adapter.leave(optimizer)
                continue
            adapter.restart(self.drawn(name, adapter))
            reset_moments(name, adapter, optimizer, self.after_reset)

    def _weight_changes(self, training: Mapping[str, Growing]) -> dict[str, float]:
        """Return c of each layer that was merged before."""
        merged = {name: adapter for name, adapter in training.items() if adapter.past is not None}
        changes = []
        for adapter in merged.values():
            assert adapter.past is not None
            weight = layers.matrix(adapter.base).to(adapter.past.dtype) + adapter.past
            changes.append((adapter.scale * (adapter.B @ adapter.A)).norm() / weight.norm())
        return dict(zip(merged, torch.stack(changes).tolist(), strict=True)) if changes else {}

    def drawn(self, name: str, adapter: Growing) -> torch.Tensor:
        """Return the new A (r, in) of the layer `name`."""
        return adapter.drawn()

    def after_reset(self, name: str, moment: torch.Tensor) -> torch.Tensor:
        """Return what is left of a moment, whose name is "layer.part.moment"."""
        return after_reset(moment, self.reset, self.pruned)

    def is_over(self) -> bool:
        return not self.training()

    def report(self) -> dict[str, float]:
        merges = sum(adapter.rounds for adapter in self.adapters.values())
        return {"merges": merges, "layers_converged": len(self.adapters) - len(self.training())}

    def state_dict(self) -> dict[str, Any]:
        past = {name: adapter.past for name, adapter in self.adapters.items() if adapter.past is not None}
        references = {name: p.reference for name, p in self._progress.items() if p.reference is not None}
        return {
            "rounds": {name: adapter.rounds for name, adapter in self.adapters.items()},
            "begun": {name: adapter.begun for name, adapter in self.adapters.items()},
            "left": {name: adapter.has_left for name, adapter in self.adapters.items()},
            "progress": {name: [p.since, p.rests, list(p.changes)] for name, p in self._progress.items()},
            "past": past,
            "references": references,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, adapter in self.adapters.items():
            adapter.set_past(state["past"].get(name), state["rounds"][name])
            adapter.begun = state["begun"][name]
            adapter.reshape(0 if state["left"][name] else adapter.of_round)
            reference = state["references"].get(name)
            since, rests, changes = state["progress"][name]
            moved = None if reference is None else reference.to(adapter.A.device)
            self._progress[name] = Progress(since, rests, list(changes), moved)

    def start_from(self, state: Mapping[str, Any]) -> None:
        self.load_state_dict(state)
        if self.is_over():
            raise ValueError("init_from: all layers of that run have converged, so nothing is left to train")
        self._progress = {name: Progress() for name in self.adapters}
