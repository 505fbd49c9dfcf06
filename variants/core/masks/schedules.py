"""Schedules of masks: when entries leave and come. Steps t count from 1, of T; a change happens after its step.

| schedule | |
|---|---|
| fixed | chosen once, before training; from `change`: after `initial_steps` dense steps, and rewound |
| gradual | dense at first; every `interval` steps fewer, along a cubic curve to the budget |
| rigl | every `interval` steps the fraction `regrow` (1 + cos(π t/(T − t_f)))/2 leaves, by abs(ΔW), and as many come |
| refresh | every `interval` steps all are chosen anew; an entry that leaves keeps what it has learned |
| localise | as refresh, but one layer at a time, in turn |

The changes of all but fixed come after steps `initial_steps`, `initial_steps` + `interval`, …, up to T − `final_steps`.

Sources   gradual: Zhu and Gupta 2017, arXiv 1710.01878; rigl: Evci et al. 2020, arXiv 1911.11134; refresh: LIFT,
          arXiv 2506.00772; localise: LoSiA, arXiv 2507.04487; change: LT-SFT, arXiv 2110.07560.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from variants.core.allocation.schedule import Cubic


@dataclass(kw_only=True)
class Schedule:
    """A schedule that changes nothing after the first choice.

    dense: whether all entries are trained at first. leaves: whether an entry that leaves keeps what it has learned.
    """

    dense: ClassVar[bool] = False
    leaves: ClassVar[bool] = False

    def plan(self, total: int) -> None:
        """Raise `ValueError` if it does not fit `total` steps."""

    def changes(self, t: int, total: int) -> bool:
        """Whether the mask may change after step t."""
        return False

    def next(self, t: int, total: int) -> int | None:
        """Return the first step from t on after which the mask may change; None if there is none."""
        return None

    def turn(self, t: int, names: Sequence[str]) -> Sequence[str]:
        """Return the layers that choose after step t."""
        return names


@dataclass(kw_only=True)
class Fixed(Schedule):
    """Has no settings."""


@dataclass(kw_only=True)
class Rewind(Schedule):
    """initial_steps: of the dense phase, after which the mask is chosen and everything is as it was before it."""

    dense: ClassVar[bool] = True
    initial_steps: int = 1

    def plan(self, total: int) -> None:
        if self.initial_steps >= total:
            raise ValueError(f"initial_steps: {self.initial_steps}, allowed: fewer than the run's {total} steps")

    def changes(self, t: int, total: int) -> bool:
        return t >= self.initial_steps  # later if that step was left out

    def next(self, t: int, total: int) -> int | None:
        return max(t, self.initial_steps)


@dataclass(kw_only=True)
class Periodic(Schedule):
    """initial_steps, final_steps, interval: steps before the first change, after the last, and between changes."""

    initial_steps: int = 1
    final_steps: int = 1
    interval: int = 10

    def plan(self, total: int) -> None:
        if self.initial_steps + self.final_steps >= total:
            raise ValueError(
                f"schedule: {self.initial_steps} initial and {self.final_steps} final steps do not fit into "
                f"{total}; initial + final must be smaller"
            )
        left = total - self.final_steps - self.initial_steps
        if self.interval > left:
            raise ValueError(
                f"interval: {self.interval}, allowed: at most the {left} steps from {self.initial_steps}, where the "
                f"mask may first change, to {total - self.final_steps}, where it last may"
            )

    def changes(self, t: int, total: int) -> bool:
        return self.initial_steps <= t <= total - self.final_steps and (t - self.initial_steps) % self.interval == 0

    def next(self, t: int, total: int) -> int | None:
        rounds = max(0, -(-(t - self.initial_steps) // self.interval))
        at = self.initial_steps + rounds * self.interval
        return at if at <= total - self.final_steps else None


@dataclass(kw_only=True)
class Gradual(Periodic):
    dense: ClassVar[bool] = True

    def changes(self, t: int, total: int) -> bool:
        # Not only at the last of these steps: it may be left out, or lie between two rounds.
        return t >= total - self.final_steps or super().changes(t, total)

    def next(self, t: int, total: int) -> int | None:
        at = super().next(t, total)
        return max(t, total - self.final_steps) if at is None else at

    def entries(self, t: int, total: int, dense: int, target: int) -> int:
        """Return how many of `dense` entries are left after step t; `target` in the end."""
        if t >= total - self.final_steps:
            return target
        return Cubic(dense, target, total, self.initial_steps, self.final_steps, self.interval).at(t)[0]


@dataclass(kw_only=True)
class RigL(Periodic):
    """regrow: the fraction of entries that is exchanged, as it would be at step 0."""

    regrow: float = 0.3

    def fraction(self, t: int, total: int) -> float:
        """Return the fraction of entries that is exchanged after step t."""
        return self.regrow * (1 + math.cos(math.pi * t / (total - self.final_steps))) / 2


@dataclass(kw_only=True)
class Refresh(Periodic):
    leaves: ClassVar[bool] = True


@dataclass(kw_only=True)
class Localise(Refresh):
    def turn(self, t: int, names: Sequence[str]) -> Sequence[str]:
        return [names[(t - self.initial_steps) // self.interval % len(names)]]


SCHEDULES: dict[str, type[Schedule]] = {
    "fixed": Fixed,
    "gradual": Gradual,
    "rigl": RigL,
    "refresh": Refresh,
    "localise": Localise,
}
