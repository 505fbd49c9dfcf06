"""Computes the numbers of a table from its rows: mean and sd over seeds, the best of each column, and costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.records import settings
from analysis.tables import costs
from analysis.tables.aggregate import Spent, Tally, tallied
from analysis.tables.best import NONE, Marks, mark
from analysis.tables.costs import NO_MEANS, Cost, Means
from analysis.tables.rows import Row, Rows
from analysis.text import numbers


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sd over n values, and their format."""

    n: int
    mean: float
    sd: float | None  # ddof 1; None for a single value
    scale: int = 1  # 100 if the metric is a fraction
    decimals: int = 0

    @property
    def mean_text(self) -> str:
        return numbers.fixed(self.scale * self.mean, self.decimals)

    @property
    def sd_text(self) -> str:
        return "" if self.sd is None else numbers.fixed(self.scale * self.sd, self.decimals)


@dataclass(frozen=True, slots=True)
class Cell:
    """One row on one task. `mean` is None without done runs. Of each run only its seed and score are kept."""

    failed: int
    spread: Spread | None = None
    seeds: tuple[int, ...] = ()  # of the n runs, sorted
    scores: Sequence[float] = ()  # see glue.py; empty if a metric is in `lacking`
    lacking: tuple[str, ...] = ()  # metrics that GLUE averages and some run lacks
    protocol: tuple[Any, ...] = ()  # settings.PROTOCOL of all its runs, in its order
    costs: Means = NO_MEANS  # only with `every_cost`

    @property
    def n(self) -> int:
        """The number of runs in the mean."""
        return len(self.seeds)

    @property
    def mean(self) -> float | None:
        return self.spread.mean if self.spread else None

    @property
    def sd(self) -> float | None:
        return self.spread.sd if self.spread else None


@dataclass(frozen=True)
class Column:
    """One task. A field in which its rows differ is empty; the rows' labels show it."""

    task: str
    metric: str | None
    reading: str  # of which checkpoint: "best on validation", "last"
    higher_is_better: bool | None
    marks: Marks  # rows with the best mean of their group, and with the second best
    mixed: tuple[str, ...]  # settings that differ and must not in a comparison

    @property
    def unmarked(self) -> str | None:
        """The reason why its rows can't be compared; None if they can."""
        if self.mixed:
            return f"the rows differ in {', '.join(self.mixed)}"
        return "no run says whether higher is better" if self.higher_is_better is None else None


@dataclass(frozen=True)
class Group:
    """Rows that are compared with each other. title: None if the table is one group. rows: their indices."""

    title: str | None
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """A table: `cells[row][column]`, `spent[row]` over all tasks of the row."""

    rows: list[Row]
    columns: list[Column]
    cells: list[list[Cell]]
    cost_columns: tuple[Cost, ...]
    spent: list[Spent]
    fractions: dict[str, bool]  # by metric, whether it is printed ×100
    groups: list[Group]
    glue: bool = True  # whether the average uses GLUE's scores (glue.py)

    def column(self, column: Column) -> list[Cell]:
        """The cells of a column, by row."""
        index = self.columns.index(column)
        return [line[index] for line in self.cells]


# The most decimals of a metric that is printed ×100, and of others.
MOST = {True: 2, False: 4}


def build(
    rows: Rows,
    *,
    group_by_budget: bool = False,
    memory: bool = False,
    chosen: Sequence[Cost] | None = None,
    every_cost: bool = False,
    glue: bool = True,
) -> Grid:
    """Computes the whole table.

    memory: whether the parts of the memory get columns. chosen: the columns of costs; None for the usual ones.
    every_cost: whether each cell has its costs. glue: see `Grid`.
    """
    tallies = [tallied(row, rows.tasks, every_cost, glue) for row in rows.rows]
    values: dict[str, list[Sequence[float]]] = {}
    percent: dict[str, bool] = {}  # where a record says so
    for line, _ in tallies:
        for tally in line:
            if tally is not None:
                values.setdefault(tally.metric, []).append(tally.values)
                if tally.percent is not None:
                    percent[tally.metric] = tally.percent
    fractions = {
        name: numbers.is_fraction(name, itertools.chain(*values[name]), percent.get(name)) for name in sorted(values)
    }
    groups = _by_budget(rows.rows) if group_by_budget else [Group(None, tuple(range(len(rows.rows))))]
    cells = [
        [_cell(row, task, tally, fractions) for task, tally in zip(rows.tasks, line, strict=True)]
        for row, (line, _) in zip(rows.rows, tallies, strict=True)
    ]
    columns = [_column(task, [line[index] for line in cells], groups) for index, task in enumerate(rows.tasks)]
    spent = [spent for _, spent in tallies]
    shown = costs.shown((each.means for each in spent), split=memory) if chosen is None else tuple(chosen)
    return Grid(rows.rows, columns, cells, shown, spent, fractions, groups, glue)


def spread(values: Sequence[float], *, fraction: bool) -> Spread:
    """Mean and sd of one or more values, with as many decimals as the sd justifies."""
    if min(values) == max(values):
        mean, sd = values[0], 0.0 if len(values) > 1 else None
    else:
        mean = _mean(values)
        # statistics.stdev uses fractions and is twenty times slower.
        sd = math.dist(values, [mean] * len(values)) / math.sqrt(len(values) - 1)
    scale = 100 if fraction else 1
    decimals = numbers.decimals(None if sd is None else scale * sd, MOST[fraction])
    return Spread(len(values), float(mean), sd, scale, decimals)


def _mean(values: Sequence[float]) -> float:
    """The exact mean, rounded once: independent of the order of the runs. statistics.mean takes four times as long."""
    ratios = [value.as_integer_ratio() for value in values]
    common = max(denominator for _, denominator in ratios)  # all are powers of two
    return sum(numerator * (common // denominator) for numerator, denominator in ratios) / (common * len(values))


def _cell(row: Row, task: str, tally: Tally | None, fractions: Mapping[str, bool]) -> Cell:
    failed = len(row.failed.get(task, ()))
    if tally is None:
        return Cell(failed)
    # The runs of a cell share metric and protocol; otherwise they would be several rows.
    protocol = row.points[task][0].protocol
    measured = spread(tally.values, fraction=fractions[tally.metric])
    return Cell(failed, measured, tally.seeds, tally.scores, tally.lacking, protocol, tally.means)


def _column(task: str, cells: Sequence[Cell], groups: Sequence[Group]) -> Column:
    protocols = [cell.protocol for cell in cells if cell.n]
    values = {name: {each[index] for each in protocols} for index, name in enumerate(settings.COMPARABLE)}
    one = {name: next(iter(own)) if len(own) == 1 else None for name, own in values.items()}
    column = Column(
        task,
        metric=one["metric.name"],
        reading=checkpoint_text(one["metric.checkpoint"], one["metric.split"], one["data.protocol"]),
        higher_is_better=one["metric.higher_is_better"],
        marks=NONE,
        mixed=tuple(settings.PROTOCOL[name] for name, own in values.items() if len(own) > 1),
    )
    if column.unmarked:
        return column
    entries = {
        row: (cell.spread.mean, cell.spread.mean_text) for row, cell in enumerate(cells) if cell.spread is not None
    }
    marks = mark(entries, [group.rows for group in groups], higher_is_better=bool(column.higher_is_better))
    return Column(task, column.metric, column.reading, column.higher_is_better, marks, ())


BUDGET = "config.variant.budget"


def budgets(row: Row) -> list[object]:
    """The budgets of a row's runs; None for runs without one."""
    points = [point for part in (row.points, row.failed_points) for points in part.values() for point in points]
    return sorted({point.value(BUDGET) for point in points}, key=settings.sort_key)


def _by_budget(rows: Sequence[Row]) -> list[Group]:
    """Groups of rows by budget, the smallest first; rows without a budget come last."""
    by_budget: dict[tuple[object, ...], list[int]] = {}
    for index, row in enumerate(rows):
        by_budget.setdefault(tuple(budgets(row)), []).append(index)

    def order(values: tuple[object, ...]) -> tuple[object, ...]:
        return (values == (None,), [settings.sort_key(value) for value in values])

    return [Group(_budget_text(values), tuple(by_budget[values])) for values in sorted(by_budget, key=order)]


def _budget_text(values: tuple[object, ...]) -> str:
    texts = [f"{value:,}" if isinstance(value, int | float) else settings.text(value) for value in values]
    return "no budget" if values == (None,) else f"budget {', '.join(texts)}"


def checkpoint_text(checkpoint: str | None, split: str | None, protocol: str | None) -> str:
    """The checkpoint of a column, for its header: `best on validation`, `last`, …"""
    if checkpoint != "best":
        return checkpoint or ""
    if protocol == "split":
        return "best on a part of train"
    # Under the protocol "dev", the reported split also chose the checkpoint.
    return f"best on {split}" if protocol == "dev" and split else "best"
