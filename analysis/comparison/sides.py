"""Finds the rows that the command line names, and decides which are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.comparison import words
from analysis.errors import AnalysisError
from analysis.tables.rows import Row

_MOST_CANDIDATES = 30


@dataclass(frozen=True)
class Sides:
    """The pairs of rows of one command, which are one family for Holm's correction."""

    pairs: tuple[tuple[Row, Row], ...]
    baseline: Row | None  # the second row of every pair; None for two named rows

    @property
    def rows(self) -> list[Row]:
        """All rows: A and B, or in the order of the table."""
        if self.baseline is None:
            return list(self.pairs[0])
        return sorted([self.baseline, *(a for a, _ in self.pairs)], key=Row.sort_key)


def two(rows: Sequence[Row], a: str, b: str) -> Sides:
    """Row A against row B. Raises `AnalysisError` if a name does not match one row, or both match the same row."""
    first, second = find(rows, a), find(rows, b)
    if first is second:
        raise AnalysisError(f"compare: {a!r} and {b!r} are the same row: {first.label!r}")
    return Sides(((first, second),), None)


def against(rows: Sequence[Row], baseline: str) -> Sides:
    """Every other row against one. Raises `AnalysisError` if the name does not match one row, or is the only row."""
    row = find(rows, baseline)
    pairs = tuple((other, row) for other in rows if other is not row)
    if not pairs:
        raise AnalysisError(f"compare: {row.label!r} is the only row: there is nothing to compare it with")
    return Sides(pairs, row)


def find(rows: Sequence[Row], name: str) -> Row:
    """The row with this name: its label, its variant, or its variant and some of its settings.

    A label has priority; otherwise exactly one row must match. Raises `AnalysisError` with the candidates.
    """
    exact = [row for row in rows if name in row.names]
    fitting = exact or [row for row in rows if _fits(row, name)]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise AnalysisError(f"compare: no row is called {name!r}; rows: {_listed(rows)}")
    raise AnalysisError(f"compare: {name!r} is {len(fitting)} rows; name one of {_listed(fitting)}")


def _fits(row: Row, name: str) -> bool:
    if name == row.variant:
        return True
    rest = name.removeprefix(f"{row.variant} ")
    return rest != name and set(rest.split()) <= set(row.settings.split())


def _listed(rows: Sequence[Row]) -> str:
    return words.listed((repr(row.label) for row in rows), _MOST_CANDIDATES)
