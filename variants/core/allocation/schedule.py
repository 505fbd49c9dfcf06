"""The schedule of a budget over the steps of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cubic:
    """From `start` to `target` along a cubic curve, between a warm-up and a final phase.

        t ≤ tᵢ                 start, no allocation
        tᵢ < t ≤ T − t_f       ⌊target + (start − target)(1 − (t − tᵢ)/(T − t_f − tᵢ))³⌋, allocated if ΔT divides t
        t > T − t_f            target, allocated at every step

    t counts from 0, as in the released code of AdaLoRA. The formula in the paper's appendix has t − tᵢ − t_f in the
    numerator, which does not end at the target.

    total: T. initial: tᵢ. final: t_f. interval: ΔT. All in optimizer steps.
    """

    start: int
    target: int
    total: int
    initial: int
    final: int
    interval: int

    def __post_init__(self) -> None:
        if self.target > self.start:
            raise ValueError(f"target: {self.target} in total, allowed: at most {self.start}, the number at the start")
        check_fits(self.initial, self.final, self.total)
        if self.interval < 1:
            raise ValueError(f"interval: {self.interval}, allowed: a whole number ≥ 1")

    def at(self, t: int) -> tuple[int, bool]:
        """Return the budget at step t, counted from 0, and whether it is allocated in that step."""
        if t <= self.initial:
            return self.start, False
        if t > self.total - self.final:
            return self.target, True
        left = 1 - (t - self.initial) / (self.total - self.final - self.initial)
        return int(self.target + (self.start - self.target) * left**3), t % self.interval == 0


def check_fits(initial: int, final: int, total: int) -> None:
    """Raise `ValueError` if the phases before and after the allocations leave no step between them."""
    if initial < 0 or final < 0 or initial + final >= total:
        raise ValueError(
            f"schedule: {initial} initial and {final} final steps do not fit into {total}; "
            "initial + final must be smaller"
        )


def check_acts(initial: int, final: int, interval: int, total: int) -> None:
    """Raise `ValueError` if no multiple of `interval` lies between the phases, so that no allocation would happen.

    Steps are counted from 0, as in `Cubic`. With an interval of 1 it is sufficient if the final phase allocates.
    """
    first = (initial // interval + 1) * interval
    if first < total - final or (interval == 1 and final):
        return
    ends = "the final phase begins" if final else "the run ends"
    raise ValueError(
        f"interval: {interval}, whose first multiple after {initial} initial steps is {first}, "
        f"allowed: one with a multiple below {total - final}, where {ends}"
    )
