"""Sorts the rows of a table by one of its columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from analysis.errors import AnalysisError
from analysis.tables import costs
from analysis.tables.averages import Averages, Ranks
from analysis.tables.cells import Grid
from analysis.tables.sheet import AVERAGE, RANK


def by(grid: Grid, averages: Averages, ranks: Ranks, name: str) -> Grid:
    """The grid with the rows of each group sorted by a task or another column: best or smallest first, blank last.

    Raises `AnalysisError` for an unknown column.
    """
    values = _values(grid, averages, ranks, name)
    if not any(value is not None for value in values):
        raise AnalysisError(f"--sort: {name!r}: no row has it")

    def key(row: int) -> tuple[bool, float]:
        value = values[row]
        return (value is None, value or 0.0)

    return replace(grid, groups=[replace(group, rows=tuple(sorted(group.rows, key=key))) for group in grid.groups])


def _values(grid: Grid, averages: Averages, ranks: Ranks, name: str) -> Sequence[float | None]:
    """By row, a number; rows are sorted by rising numbers."""
    for index, column in enumerate(grid.columns):
        if column.task == name:
            if column.unmarked:
                raise AnalysisError(f"--sort: {name!r}: {column.unmarked}")
            return _signed([line[index].mean for line in grid.cells], bool(column.higher_is_better))
    if name == AVERAGE:
        return _signed([None if spread is None else spread.mean for spread in averages.spreads], True)
    if name == RANK:
        return ranks.means
    cost = next((cost for cost in costs.COSTS if cost.name == name), None)
    if cost is None:
        allowed = [*(column.task for column in grid.columns), AVERAGE, RANK, *(cost.name for cost in costs.COSTS)]
        raise AnalysisError(f"--sort: {name!r}, allowed: {', '.join(allowed)}")
    return _signed([spent.means.of(cost) for spent in grid.spent], cost.higher_is_better)


def _signed(values: Sequence[float | None], higher_first: bool) -> list[float | None]:
    return [value if value is None or not higher_first else -value for value in values]
