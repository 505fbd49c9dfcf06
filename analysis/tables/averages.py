"""Over the tasks of a table: each row's average in GLUE's way, and its average rank.

Both are only for rows that have done runs on every task, and only where the tasks of a column can
be compared.
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
    """By row, the mean over tasks; its n is the number of seeds, 0 where the tasks have different ones."""

    spreads: list[Spread | None]
    marks: Marks = NONE
    why_none: str | None = None  # why no row has one, where there are several tasks
    lacking: tuple[tuple[str, str, str], ...] = ()  # row, task, and a metric that GLUE averages

    @property
    def shown(self) -> bool:
        return any(self.spreads)


@dataclass(frozen=True)
class Ranks:
    """By row, the mean over tasks of its rank in its group, 1 for the best; ties get the mean of their ranks."""

    means: list[float | None]
    marks: Marks = NONE
    why_none: str | None = None

    @property
    def shown(self) -> bool:
        return any(mean is not None for mean in self.means)


def averages(grid: Grid) -> Averages:
    """The average of each row: the mean of `glue.score` over tasks, ± its sd over seeds."""
    found: list[Spread | None] = [None] * len(grid.rows)
    if len(grid.columns) < 2:
        return Averages(found)
    complete = _complete(grid)
    why = _why_none(grid, complete)
    for column in grid.columns:
        if why is None and not (grid.fractions[column.metric or ""] and column.higher_is_better):
            why = f"{column.metric or 'the metric'} of {column.task} is not one that is printed ×100"
    if why:
        return Averages(found, why_none=why)
    lacking = []
    for place in complete:
        cells = zip(grid.columns, grid.cells[place], strict=True)
        missed = sorted((column.task, metric) for column, cell in cells for metric in cell.lacking)
        if missed:
            lacking += [(grid.rows[place].label, *pair) for pair in missed]
        else:
            found[place] = _average(grid.cells[place])
    entries = {place: (each.mean, each.mean_text) for place, each in enumerate(found) if each}
    marks = mark(entries, [group.places for group in grid.groups], higher_is_better=True)
    return Averages(found, marks, lacking=tuple(lacking))


def ranks(grid: Grid) -> Ranks:
    """The average rank of each row, by the exact means of its cells."""
    found: list[float | None] = [None] * len(grid.rows)
    if len(grid.columns) < 2:
        return Ranks(found)
    complete = _complete(grid)
    why = _why_none(grid, complete)
    if why:
        return Ranks(found, why_none=why)
    for group in grid.groups:
        places = [place for place in group.places if place in complete]
        if len(places) < 2:
            continue
        by_task = [
            ranked([grid.cells[place][number].mean or 0.0 for place in places], bool(column.higher_is_better))
            for number, column in enumerate(grid.columns)
        ]
        for place, *own in zip(places, *by_task, strict=True):
            found[place] = statistics.fmean(own)
    entries = {place: (mean, numbers.fixed(mean, 2)) for place, mean in enumerate(found) if mean is not None}
    return Ranks(found, mark(entries, [group.places for group in grid.groups], higher_is_better=False))


def ranked(values: Sequence[float], higher_is_better: bool) -> list[float]:
    """The rank of each value, 1 for the best; ties get the mean of their ranks."""
    signed = [-value if higher_is_better else value for value in values]
    order = sorted(signed)
    # A tie takes the places from the first to the last of its like; counted from 1, their mean is this.
    return [(bisect_left(order, value) + 1 + bisect_right(order, value)) / 2 for value in signed]


def _complete(grid: Grid) -> set[int]:
    return {place for place, line in enumerate(grid.cells) if all(cell.n for cell in line)}


def _why_none(grid: Grid, complete: set[int]) -> str | None:
    if not complete:
        return "no row has runs on every task"
    return next((f"on {column.task} {column.unmarked}" for column in grid.columns if column.unmarked), None)


def _average(cells: Sequence[Cell]) -> Spread:
    by_task = [dict(zip(cell.seeds, cell.scores, strict=True)) for cell in cells]
    seeds = by_task[0].keys()
    balanced = all(own.keys() == seeds and len(own) == cell.n for own, cell in zip(by_task, cells, strict=True))
    if balanced:
        return spread([statistics.fmean(own[seed] for own in by_task) for seed in sorted(seeds)], fraction=True)
    mean = statistics.fmean(statistics.fmean(cell.scores) for cell in cells)
    return replace(spread([mean], fraction=True), n=0)
