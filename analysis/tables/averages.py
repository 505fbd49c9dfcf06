"""Each row's average over tasks, as GLUE forms it, and its average rank.

Both need done runs on every task, and columns whose rows can be compared.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis.tables.best import NONE, Marks, mark
from analysis.tables.cells import Cell, Grid, Spread, spread
from analysis.text import numbers


@dataclass(frozen=True)
class Averages:
    """By row, the mean over tasks. Its n is the number of seeds, or 0 if the tasks have different seeds."""

    spreads: list[Spread | None]
    marks: Marks = NONE
    why_none: str | None = None  # why no row has an average, if there are several tasks
    lacking: tuple[tuple[str, str, str], ...] = ()  # row, task and missing metric

    @property
    def shown(self) -> bool:
        return any(self.spreads)


@dataclass(frozen=True)
class Ranks:
    """By row, the mean over tasks of its rank within its group: 1 is the best, ties share the mean of their ranks."""

    means: list[float | None]
    marks: Marks = NONE
    why_none: str | None = None

    @property
    def shown(self) -> bool:
        return any(mean is not None for mean in self.means)


def averages(grid: Grid) -> Averages:
    """The average of each row: the mean of its scores (glue.py) over tasks, ± its sd over seeds."""
    spreads: list[Spread | None] = [None] * len(grid.rows)
    if len(grid.columns) < 2:
        return Averages(spreads)
    complete = _complete(grid)
    why = _why_none(grid, complete)
    for column in grid.columns:
        if why is None and not (grid.fractions[column.metric or ""] and column.higher_is_better):
            why = f"{column.metric or 'the metric'} of {column.task} is not printed ×100"
    if why:
        return Averages(spreads, why_none=why)
    lacking = []
    for row in complete:
        cells = zip(grid.columns, grid.cells[row], strict=True)
        missing = sorted((column.task, metric) for column, cell in cells for metric in cell.lacking)
        if missing:
            lacking += [(grid.rows[row].label, *pair) for pair in missing]
        else:
            spreads[row] = _average(grid.cells[row])
    entries = {row: (each.mean, each.mean_text) for row, each in enumerate(spreads) if each}
    marks = mark(entries, [group.rows for group in grid.groups], higher_is_better=True)
    return Averages(spreads, marks, lacking=tuple(lacking))


def ranks(grid: Grid) -> Ranks:
    """The average rank of each row, by the unrounded means of its cells."""
    means: list[float | None] = [None] * len(grid.rows)
    if len(grid.columns) < 2:
        return Ranks(means)
    complete = _complete(grid)
    why = _why_none(grid, complete)
    if why:
        return Ranks(means, why_none=why)
    for group in grid.groups:
        rows = [row for row in group.rows if row in complete]
        if len(rows) < 2:
            continue
        by_task = [
            ranked([grid.cells[row][number].mean or 0.0 for row in rows], bool(column.higher_is_better))
            for number, column in enumerate(grid.columns)
        ]
        for row, *row_ranks in zip(rows, *by_task, strict=True):
            means[row] = statistics.fmean(row_ranks)
    entries = {row: (mean, numbers.fixed(mean, 2)) for row, mean in enumerate(means) if mean is not None}
    return Ranks(means, mark(entries, [group.rows for group in grid.groups], higher_is_better=False))


def ranked(values: Sequence[float], higher_is_better: bool) -> list[float]:
    """The rank of each value: 1 is the best, ties share the mean of their ranks."""
    signed = [-value if higher_is_better else value for value in values]
    order = sorted(signed)
    # Tied values share the mean of their first and last position, counted from 1.
    return [(bisect_left(order, value) + 1 + bisect_right(order, value)) / 2 for value in signed]


def _complete(grid: Grid) -> set[int]:
    return {row for row, line in enumerate(grid.cells) if all(cell.n for cell in line)}


def _why_none(grid: Grid, complete: set[int]) -> str | None:
    if not complete:
        return "no row has runs on every task"
    return next((f"on {column.task} {column.unmarked}" for column in grid.columns if column.unmarked), None)


def _average(cells: Sequence[Cell]) -> Spread:
    by_task = [dict(zip(cell.seeds, cell.scores, strict=True)) for cell in cells]
    seeds = by_task[0].keys()
    balanced = all(
        scores.keys() == seeds and len(scores) == cell.n for scores, cell in zip(by_task, cells, strict=True)
    )
    if balanced:
        return spread([statistics.fmean(scores[seed] for scores in by_task) for seed in sorted(seeds)], fraction=True)
    mean = statistics.fmean(statistics.fmean(cell.scores) for cell in cells)
    return replace(spread([mean], fraction=True), n=0)
