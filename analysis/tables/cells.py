"""Rows → a table's numbers: mean and sd over seeds, the best of each column, averages and costs."""

from __future__ import annotations

import itertools
import math
import statistics
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
    """Mean and sd over n values, and how both are printed."""

    n: int
    mean: float
    sd: float | None  # ddof 1; None for fewer than two values
    scale: int = 1  # 100 where the metric is a fraction
    places: int = 0  # decimals

    @property
    def mean_text(self) -> str:
        return numbers.fixed(self.scale * self.mean, self.places)

    @property
    def sd_text(self) -> str:
        return "" if self.sd is None else numbers.fixed(self.scale * self.sd, self.places)


@dataclass(frozen=True, slots=True)
class Cell:
    """One row on one task. Without done runs, `mean` is None. Of each run it has its seed and its score, no more."""

    failed: int
    spread: Spread | None = None
    seeds: tuple[int, ...] = ()  # rising, of the n runs
    scores: Sequence[float] = ()  # see glue.py; empty where `lacking` says why
    lacking: tuple[str, ...] = ()  # metrics that GLUE averages and some run has not
    protocol: tuple[Any, ...] = ()  # what all of its runs reported: settings.PROTOCOL, in its order
    costs: Means = NO_MEANS  # where `build` was told to keep them

    @property
    def n(self) -> int:
        """The number of runs that the mean is over."""
        return len(self.seeds)

    @property
    def mean(self) -> float | None:
        return self.spread.mean if self.spread else None

    @property
    def sd(self) -> float | None:
        return self.spread.sd if self.spread else None


@dataclass(frozen=True)
class Column:
    """One task. What its rows do not share is empty here and stands in the rows' labels."""

    task: str
    metric: str | None
    reading: str  # which checkpoint: "best on validation", "last"
    higher_is_better: bool | None
    marks: Marks  # rows with the best mean of their group, and with the second best
    mixed: tuple[str, ...]  # in what the rows differ that would have to be the same

    @property
    def unmarked(self) -> str | None:
        """Why its rows can't be compared, if they can't."""
        if self.mixed:
            return f"the rows differ in {', '.join(self.mixed)}"
        return "no run says whether higher is better" if self.higher_is_better is None else None


@dataclass(frozen=True)
class Group:
    """Rows that are compared with each other. `title` is None where the table is one group."""

    title: str | None
    places: tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """A table: `cells[row][column]`, `spent[row]` over all tasks of the row."""

    rows: list[Row]
    columns: list[Column]
    cells: list[list[Cell]]
    cost_columns: tuple[Cost, ...]
    spent: list[Spent]
    fractions: dict[str, bool]  # metrics of the table → printed ×100?
    groups: list[Group]
    glue: bool = True  # whether some tasks count in the average as GLUE has it

    def column(self, column: Column) -> list[Cell]:
        """The cells of a column, by row."""
        place = self.columns.index(column)
        return [line[place] for line in self.cells]


# Decimals at most: of a metric ×100, and of one as it is.
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
    """Computes the whole table. memory: with the parts of the memory as columns of their own; chosen: the columns of
    costs, None for those of most tables; every_cost: with the costs of each cell; glue: see `Grid`."""
    tallies = [tallied(row, rows.tasks, every_cost, glue) for row in rows.rows]
    values: dict[str, list[Sequence[float]]] = {}
    for line, _ in tallies:
        for tally in line:
            if tally is not None:
                values.setdefault(tally.metric, []).append(tally.values)
    fractions = {name: numbers.is_fraction(name, itertools.chain(*values[name])) for name in sorted(values)}
    groups = _by_budget(rows.rows) if group_by_budget else [Group(None, tuple(range(len(rows.rows))))]
    cells = [
        [_cell(row, task, tally, fractions) for task, tally in zip(rows.tasks, line, strict=True)]
        for row, (line, _) in zip(rows.rows, tallies, strict=True)
    ]
    columns = [_column(task, [line[place] for line in cells], groups) for place, task in enumerate(rows.tasks)]
    spent = [spent for _, spent in tallies]
    shown = costs.shown((each.means for each in spent), split=memory) if chosen is None else tuple(chosen)
    return Grid(rows.rows, columns, cells, shown, spent, fractions, groups, glue)


def spread(values: Sequence[float], *, fraction: bool) -> Spread:
    """Mean and sd of one or more values, and their texts to the digit that the sd allows."""
    if min(values) == max(values):
        mean, sd = values[0], 0.0 if len(values) > 1 else None
    else:
        mean = float(statistics.mean(values))  # exact: no order of the runs changes a digit
        # As statistics.stdev, which computes with fractions and takes twenty times as long.
        sd = math.dist(values, [mean] * len(values)) / math.sqrt(len(values) - 1)
    scale = 100 if fraction else 1
    places = numbers.decimals(None if sd is None else scale * sd, MOST[fraction])
    return Spread(len(values), float(mean), sd, scale, places)


def _cell(row: Row, task: str, tally: Tally | None, fractions: Mapping[str, bool]) -> Cell:
    failed = len(row.failed.get(task, ()))
    if tally is None:
        return Cell(failed)
    # The runs of a cell have one metric and one protocol, or they would be several rows.
    protocol = row.points[task][0].protocol
    measured = spread(tally.values, fraction=fractions[tally.metric])
    return Cell(failed, measured, tally.seeds, tally.scores, tally.lacking, protocol, tally.means)


def _column(task: str, cells: Sequence[Cell], groups: Sequence[Group]) -> Column:
    protocol = [cell.protocol for cell in cells if cell.n]
    shared = {name: {values[place] for values in protocol} for place, name in enumerate(settings.COMPARABLE)}
    one = {name: next(iter(found)) if len(found) == 1 else None for name, found in shared.items()}
    column = Column(
        task,
        metric=one["metric.name"],
        reading=checkpoint_text(one["metric.checkpoint"], one["metric.split"], one["data.protocol"]),
        higher_is_better=one["metric.higher_is_better"],
        marks=NONE,
        mixed=tuple(settings.PROTOCOL[name] for name, found in shared.items() if len(found) > 1),
    )
    if column.unmarked:
        return column
    entries = {
        place: (cell.spread.mean, cell.spread.mean_text) for place, cell in enumerate(cells) if cell.spread is not None
    }
    marks = mark(entries, [group.places for group in groups], higher_is_better=bool(column.higher_is_better))
    return Column(task, column.metric, column.reading, column.higher_is_better, marks, ())


BUDGET = "config.variant.budget"


def budgets(row: Row) -> list[object]:
    """The budgets that a row's runs were given, None for none."""
    points = [point for part in (row.points, row.failed_points) for points in part.values() for point in points]
    return sorted({point.value(BUDGET) for point in points}, key=settings.sort_key)


def _by_budget(rows: Sequence[Row]) -> list[Group]:
    """Groups by budget, the smallest first, rows without one last."""
    places: dict[tuple[object, ...], list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(tuple(budgets(row)), []).append(place)

    def order(found: tuple[object, ...]) -> tuple[object, ...]:
        return (found == (None,), [settings.sort_key(value) for value in found])

    return [Group(_budget_text(found), tuple(places[found])) for found in sorted(places, key=order)]


def _budget_text(found: tuple[object, ...]) -> str:
    texts = [f"{value:,}" if isinstance(value, int | float) else settings.text(value) for value in found]
    return "no budget" if found == (None,) else f"budget {', '.join(texts)}"


def checkpoint_text(checkpoint: str | None, split: str | None, protocol: str | None) -> str:
    """`best on validation`, `last`, …: which checkpoint a number is from, as a header says it."""
    if checkpoint != "best":
        return checkpoint or ""
    if protocol == "split":
        return "best on a part of train"
    # Under "dev" the split that is reported is the one on which the checkpoint was chosen.
    return f"best on {split}" if protocol == "dev" and split else "best"
