"""LoSiA: of every weight a subnet of rows × columns is trained, and moves to where the weight matters most.

    y = (W + ΔW) x        ΔW trained between p rows and q columns of W, drawn at first
    in a layer's turn, `interval` steps long, for x = W ∘ ∂L/∂W:
      I ← abs(x − x²/2)     Ī ← β₁ Ī + (1 − β₁) I     U ← β₂ U + (1 − β₂) abs(I − Ī)
    at its end the rows and columns with the largest sum of Ī U are chosen (`best_subnet`), its moments are dropped, and
    its learning rate rises from 0 again over `rewarm` steps

The blocks of the model have their turns one after another; layers outside blocks have one each, after them.

Paper     Wang et al. 2025, "LoSiA: Efficient High-Rank Fine-Tuning via Subnet Localization and Optimization", EMNLP,
          arXiv 2507.04487.
Code      KlozeWang/LoSiA 76c2722, update_type asy_period, taylor_type param_mix.
Budget    `budget` replaces factor: sides in proportion to the layer's, to less than one row or column of one layer.
Family    sparse
Trains    rows × columns of each W
Changes   mask: one block's subnets after every `interval` steps
Checked   released code: test_losia test_every_number_of_the_released_code
Hooks     on_step_begin  collects gradients in the layers whose turn it is
          on_gradients   averages their importance
          on_update      scales the step of layers that warm up, decays, and chooses at the end of a turn
          on_train_end   raises if no subnet was chosen although a turn was over
Cost      p q parameters, moments and indices per layer, W + ΔW in each pass, as SHiRA; the layers whose turn it is form
          their gradients densely and keep two averages of their size. After the first choice ΔW is kept as a second
          matrix beside W.
Decay     values decay, towards the base model. `decay_after_step` shrinks the subnet's weights W + ΔW themselves.

  | | paper (default) | released |
  |---|---|---|
  | rate while it rises again | the run's | that of the step where it began to rise, `warmup` steps on |
  | it rises | after each choice | at first, too, once the run's own `warmup` is over |
  | decay | the optimizer's | `decay_after_step` |

Known     The bias correction of Adam goes on counting for moments that were dropped. The released code sorts rows and
          columns without effect. More entries change than are trained: `report` has their number.
          A turn whose last step was left out, as its gradients were not finite, lasts to the end of the next step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from variants.core import collectives, field_checks, layers, seeding, target_modules
from variants.core.adapters.drifting_delta import DriftingDelta
from variants.core.adapters.sparse_delta import check_finite
from variants.core.masks.scopes import Count, Subnet, best_subnet
from variants.core.variant import AdapterVariant, Step, pattern_value

PROFILES = ("paper", "released")


@dataclass(kw_only=True)
class LoSiA(AdapterVariant):
    """LoSiA.

    factor: p and q as a fraction of a layer's rows and columns, rounded down, at least 1.
    rows_only: layers, by name, of which all columns are trained, with the fraction of their rows: {lm_head: 0.125}.
    interval: steps of a turn. turns: names of the layers of each turn; empty for the model's blocks.
    beta1, beta2: β₁ and β₂. rewarm: steps over which a layer's rate rises; null for `interval`.
    decay_after_step: weight decay of the subnet's weights. profile: "paper" or "released", see the module's docstring.
    warmup: the run's warm-up steps (released). seed: of the first subnets.
    budget: trained parameters, in place of factor (`variants.core.allocation.budget`).
    """

    unpredicted: ClassVar[str] = "a dense sum of each layer after entries have moved"

    name: str = "losia"
    factor: float = 0.125
    rows_only: Mapping[str, float] = field(default_factory=dict)
    interval: int = 100
    turns: Sequence[Sequence[str]] = ()
    beta1: float = 0.85
    beta2: float = 0.85
    rewarm: int | None = None
    decay_after_step: float = 0.0
    profile: str = "paper"
    warmup: int = 0
    seed: int = 0
    budget: int | None = None

    adapters: dict[str, DriftingDelta] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "interval")
        field_checks.check_int(self, "seed", "warmup", at_least=0)
        field_checks.check_not_negative(self, "decay_after_step")
        field_checks.check_fraction(self, "beta1", "beta2")
        field_checks.check("factor", self.factor, 0 < self.factor <= 1, "0 < factor ≤ 1")
        for fraction in self.rows_only.values():
            field_checks.check("rows_only", fraction, 0 < fraction <= 1, "fractions, 0 < fraction ≤ 1")
        field_checks.check_one_of(self, "profile", PROFILES)
        if self.profile == "paper":
            field_checks.check_without_effect(self, "warmup", "profile: paper")
        if self.rewarm is not None:
            field_checks.check_int(self, "rewarm")
        field_checks.check_budget(self, "factor", "rows_only")
        self._counts: dict[str, Count] = {}  # rows and columns by layer
        self._turns: list[list[str]] = []
        self._ended = 0  # turns that are over
        self._chosen_at: dict[str, int] = {}  # steps before a layer's last choice
        self._has_chosen = False  # in this run; a best checkpoint may be older
        self._averages: dict[str, torch.Tensor] = {}  # Ī and U of the layers whose turn it is, (2, out, in)
        self._before: dict[str, torch.Tensor] = {}  # values before the step, of layers whose step will be scaled

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {"factor": 0.5, "interval": 3, "rewarm": 2},
            {"factor": 0.4, "interval": 2, "decay_after_step": 0.1, "profile": "released", "warmup": 2, "seed": 1},
            {"budget": 101, "interval": 4, "beta1": 0.5},
            {"factor": 0.4, "rows_only": {"fc1": 0.25}, "interval": 2, "turns": [["fc2"], ["fc1"]]},
        ]

    def plan(self, total_steps: int) -> None:
        if self.interval >= total_steps:
            raise ValueError(f"interval: {self.interval}, allowed: fewer than the run's {total_steps} steps")

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        sizes = {name: layers.size(layer) for name, layer in self.select(model, head).items()}
        for pattern in self.rows_only:
            if not any(target_modules.matches(name, pattern) for name in sizes):
                raise ValueError(f"rows_only: no adapted layer ends in {pattern!r}")
        if self.budget is not None:
            self._counts = Subnet().counts(sizes, self.budget)
        else:
            self._counts = {name: self._sides(name, size) for name, size in sizes.items()}
        self._turns = self._in_turns(list(sizes))

    def _sides(self, name: str, size: tuple[int, int]) -> Count:
        rows, columns = size
        if fraction := pattern_value(self.rows_only, name, 0.0):
            return max(1, int(rows * fraction)), columns
        return max(1, int(rows * self.factor)), max(1, int(columns * self.factor))

    def _in_turns(self, names: Sequence[str]) -> list[list[str]]:
        """Return the layers of each turn. Raises `ValueError` unless every layer has one turn and no turn is empty."""
        if not self.turns:
            blocks: dict[Any, list[str]] = {}
            for name in names:
                number = target_modules.block_number(name)
                blocks.setdefault((1, name) if number is None else (0, number), []).append(name)
            return [blocks[key] for key in sorted(blocks, key=lambda key: key[0])]
        found = [[n for n in names if any(target_modules.matches(n, p) for p in turn)] for turn in self.turns]
        for name in names:
            if (count := sum(name in turn for turn in found)) != 1:
                raise ValueError(f"turns: {name} has {count} turns, allowed: one")
        for turn, chosen in zip(self.turns, found, strict=True):
            if not chosen:
                raise ValueError(f"turns: {list(turn)} is no adapted layer, allowed: names of one or more")
        return found

    def build(self, name: str, layer: nn.Module) -> DriftingDelta:
        size = layers.size(layer)
        rows, columns = self.drawn(name, size, self._counts[name])
        return DriftingDelta(layer, (rows[:, None] * size[1] + columns).flatten())

    def drawn(self, name: str, size: tuple[int, int], counts: Count) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows (p,) and columns (q,) of the layer's first subnet, ascending."""
        generator = seeding.generator(self.seed, name)
        rows, columns = (
            torch.randperm(n, generator=generator)[:k].sort().values for n, k in zip(size, counts, strict=True)
        )
        return rows, columns

    def _turn(self) -> list[str]:
        """Return the layers whose turn it is."""
        return self._turns[self._ended % len(self._turns)]

    def on_step_begin(self, step: Step) -> None:
        turn = self._turn()
        for name, adapter in self.adapters.items():
            adapter.watched, adapter.gradient = name in turn, None

    @torch.no_grad()
    def on_gradients(self, step: Step) -> None:
        for name in self._turn():
            adapter = self.adapters[name]
            if adapter.gradient is None:
                raise ValueError(f"targets: {name} is not part of the loss; exclude it")
            self._measure(name, collectives.all_reduce_sum(adapter.gradient))
            adapter.gradient = None
        self._before = {n: self.adapters[n].values.detach().clone() for n in self.adapters if self._rises(n, step)}

    def _measure(self, name: str, gradient: torch.Tensor) -> None:
        adapter = self.adapters[name]
        x = (adapter.layer_kind.matrix.to(adapter.values.dtype) + adapter.dense()) * gradient
        importance = (x - 0.5 * x.square()).abs()
        if name not in self._averages:
            self._averages[name] = importance.new_zeros(2, *importance.shape)
        mean, deviation = self._averages[name]
        mean.mul_(self.beta1).add_(importance, alpha=1 - self.beta1)
        deviation.mul_(self.beta2).add_((importance - mean).abs(), alpha=1 - self.beta2)

    def _rises(self, name: str, step: Step) -> bool:
        """Whether the layer's learning rate still rises in this step."""
        done, chosen = step.index - 1, self._chosen_at.get(name)
        if self.profile == "released":
            return done >= self.warmup and done - (chosen or 0) < self._rewarm
        return chosen is not None and done - chosen < self._rewarm

    @property
    def _rewarm(self) -> int:
        return self.interval if self.rewarm is None else self.rewarm

    def _scale(self, name: str, step: Step, group: int) -> float:
        """Return the factor of the run's learning rate for a layer whose rate rises."""
        done, chosen = step.index - 1, self._chosen_at.get(name, 0)
        risen = (done - chosen) / self._rewarm
        if self.profile == "paper" or not risen:
            return risen
        if not isinstance(step.scheduler, LambdaLR):
            kind = type(step.scheduler).__name__
            raise ValueError(f"optim.schedule: {kind} with profile: released, allowed: linear")
        curve = step.scheduler.lr_lambdas[group]
        return risen * curve(chosen + self.warmup) / now if (now := curve(done)) else 0.0

    @torch.no_grad()
    def on_update(self, step: Step) -> None:
        groups = {id(p): i for i, group in enumerate(step.optimizer.param_groups) for p in group["params"]}
        for name, adapter in self.adapters.items():
            group, scale = groups[id(adapter.values)], 1.0
            if (before := self._before.get(name)) is not None:
                scale = self._scale(name, step, group)
                adapter.values.lerp_(before, 1 - scale)
            if self.decay_after_step:
                rate = scale * step.optimizer.param_groups[group]["lr"] * self.decay_after_step
                weights = adapter.layer_kind.matrix.flatten()[adapter.indices].to(adapter.values.dtype)
                adapter.values.sub_(weights + adapter.values, alpha=rate)
        self._before = {}
        if step.index >= (self._ended + 1) * self.interval:  # later if that step was left out
            self._choose(step)
            self._ended = step.index // self.interval

    def _choose(self, step: Step) -> None:
        names = [name for name in self._turn() if name in self._averages]
        scores = {name: self._averages[name].prod(0) for name in names}
        check_finite(scores, "score: that of {} is not finite")
        for name, score in scores.items():
            adapter = self.adapters[name]
            if step.index < step.total:  # what comes after the last step would not be trained
                rows, columns = best_subnet(score, *self._counts[name])
                adapter.move((rows[:, None] * adapter.in_features + columns).flatten(), step.optimizer)
                for moment in step.optimizer.state.get(adapter.values, {}).values():
                    if isinstance(moment, torch.Tensor) and moment.shape == adapter.values.shape:
                        moment.zero_()
                self._chosen_at[name] = step.index
                self._has_chosen = True
        self._averages = {}

    def on_train_end(self, step: Step) -> None:
        if step.index >= self.interval and not self._has_chosen:
            raise RuntimeError(
                f"interval: {self.interval}, and all steps from there to the last, {step.index}, were left out, as "
                "their gradients were not finite: no subnet was chosen"
            )

    def decays(self, name: str) -> bool:
        return not self.decay_after_step

    def needs_whole_weights(self) -> str | None:
        return f"interval: {self.interval}"

    def report(self) -> dict[str, float]:
        return {"changed_entries": sum(len(adapter.changed()) for adapter in self.adapters.values())}

    def state_dict(self) -> dict[str, Any]:
        check_finite(self._averages, "score: a gradient of {} is not finite")
        return {
            "entries": {name: adapter.saved() for name, adapter in self.adapters.items()},
            "chosen_at": dict(self._chosen_at),
            "ended": self._ended,
            "averages": dict(self._averages),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._chosen_at, self._ended = dict(state["chosen_at"]), state["ended"]
        self._has_chosen |= bool(self._chosen_at)
        for name, adapter in self.adapters.items():
            adapter.take_up(state["entries"][name])
        self._averages = {n: averages.to(self.adapters[n].values.device) for n, averages in state["averages"].items()}

    def start_from(self, state: Mapping[str, Any]) -> None:
        self.load_state_dict({**state, "chosen_at": {}, "ended": 0, "averages": {}})
