"""How a comparison prints its numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from analysis.tables.cells import MOST
from analysis.text import numbers


@dataclass(frozen=True)
class Scale:
    """How differences of one metric on one task are printed: all with the same decimals."""

    metric: str
    fraction: bool  # printed ×100, in points
    places: int

    def number(self, value: float | None) -> str:
        """A value or a difference; nothing for None."""
        return "" if value is None else numbers.fixed((100 if self.fraction else 1) * value, self.places)

    def interval(self, low: float | None, high: float | None) -> str:
        """`0.40 to 1.40`; nothing where there is none."""
        return "" if low is None or high is None else f"{self.number(low)} to {self.number(high)}"

    @property
    def unit(self) -> str:
        """What stands behind a difference: points, or the metric's name."""
        return "points" if self.fraction else self.metric or "units"


def scale(metric: str, values: Iterable[float], sd: float | None, percent: bool | None = None) -> Scale:
    """The scale of a metric with these values, whose difference has this sd (None: one seed). percent: see
    `numbers.is_fraction`."""
    fraction = numbers.is_fraction(metric, values, percent)
    spread = None if sd is None else (100 if fraction else 1) * sd
    return Scale(metric, fraction, numbers.decimals(spread, MOST[fraction]))


def p_value(p: float | None) -> str:
    """Four decimals: the smallest p values of sign-flip tests differ in them. Nothing for None."""
    if p is None:
        return ""
    return f"{p:.4f}" if p >= 0.0001 else f"{p:.0e}"


def with_holm(p: float | None, adjusted: float | None) -> str:
    """`0.0125 (0.0250)`: a p and, adjusted for its family, the same again."""
    return "" if p is None else f"{p_value(p)} ({p_value(adjusted)})"


def listed(values: Iterable[Any], most: int | None = None) -> str:
    """`0, 1, 2`; more than `most` are cut with their number: `0, 1 and 7 more`."""
    texts = list(map(str, values))
    more = 0 if most is None else len(texts) - most
    return ", ".join(texts[:most]) + (f" and {more} more" if more > 0 else "")


def times(count: int, word: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
