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
    baseline: Row | None  # the second row of every pair; None for named pairs

    @property
    def rows(self) -> list[Row]:
        """All rows once: A and B of a single named pair, or in the order of the table."""
        if self.is_one:
            return list(self.pairs[0])
        rows = {id(row): row for pair in self.pairs for row in pair}
        return sorted(rows.values(), key=Row.sort_key)

    @property
    def is_one(self) -> bool:
        """Whether it is one pair that the user named."""
        return self.baseline is None and len(self.pairs) == 1


def named(rows: Sequence[Row], pairs: Sequence[Sequence[str]]) -> Sides:
    """Row A against row B, for each pair of names.

    Raises `AnalysisError` if a name does not match one row, both names match the same row, or a pair is there twice.
    """
    found: list[tuple[Row, Row]] = []
    for a, b in pairs:
        first, second = find(rows, a), find(rows, b)
        if first is second:
            raise AnalysisError(f"compare: {a!r} and {b!r} are the same row: {first.label!r}")
        if any({id(first), id(second)} == {id(row) for row in other} for other in found):
            raise AnalysisError(f"compare: the pair of {first.label!r} and {second.label!r} is there twice")
        found.append((first, second))
    return Sides(tuple(found), None)


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
