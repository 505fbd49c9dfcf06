"""Rows → a table's numbers: mean and sd over seeds, the best of each column, averages and costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analysis import costs, numbers, settings
from analysis.costs import Cost
from analysis.marks import NONE, Marks, mark
from analysis.rows import Row, Rows
from analysis.runs import Run


@dataclass(frozen=True)
class Spread:
    """Mean and sd over n values, and both as they are printed."""

    n: int
    mean: float
    sd: float | None  # ddof 1; None for fewer than two values
    mean_text: str  # as printed: ×100 where the metric is a fraction
    sd_text: str


@dataclass(frozen=True)
class Cell:
    """One row on one task. Without done runs, `mean` is None."""

    runs: tuple[Run, ...]
    failed: int
    spread: Spread | None

    @property
    def n(self) -> int:
        """The number of runs that the mean is over."""
        return len(self.runs)

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
    """A table: `cells[row][column]`, `costs[row][cost]` over all tasks of the row."""

    rows: list[Row]
    columns: list[Column]
    cells: list[list[Cell]]
    cost_columns: tuple[Cost, ...]
    costs: list[list[float | None]]
    fractions: dict[str, bool]  # metrics of the table → printed ×100?
    groups: list[Group]

    def column(self, column: Column) -> list[Cell]:
        """The cells of a column, by row."""
        place = self.columns.index(column)
        return [line[place] for line in self.cells]


# Decimals at most: of a metric ×100, and of one as it is.
MOST = {True: 2, False: 4}


def build(rows: Rows, *, group_by_budget: bool = False, memory: bool = False) -> Grid:
    """Computes the whole table. memory: with the parts of the memory as columns of their own."""
    done = [run for row in rows.rows for runs in row.runs.values() for run in runs]
    values: dict[str, list[float]] = {}
    for run in done:
        metric = run.record.metric
        values.setdefault(metric.name or "", []).append(metric.value or 0.0)
    fractions = {name: numbers.is_fraction(name, values[name]) for name in sorted(values)}
    groups = _by_budget(rows.rows) if group_by_budget else [Group(None, tuple(range(len(rows.rows))))]
    cells = [[_cell(row, task, fractions) for task in rows.tasks] for row in rows.rows]
    columns = [_column(task, [line[place] for line in cells], groups) for place, task in enumerate(rows.tasks)]
    shown = costs.shown((run.record for run in done), split=memory)
    spent = [costs.means([run.record for runs in row.runs.values() for run in runs], shown) for row in rows.rows]
    return Grid(rows.rows, columns, cells, shown, spent, fractions, groups)


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
    sd_text = "" if sd is None else numbers.fixed(scale * sd, places)
    return Spread(len(values), float(mean), sd, numbers.fixed(scale * mean, places), sd_text)


def _cell(row: Row, task: str, fractions: Mapping[str, bool]) -> Cell:
    # .get: asking a defaultdict for a task would add it.
    runs = tuple(sorted(row.runs.get(task, ()), key=lambda run: (run.record.seed, run.record.run_id)))
    failed = len(row.failed.get(task, ()))
    if not runs:
        return Cell(runs, failed, None)
    # A done record without a value is not trusted.
    values = [run.record.metric.value or 0.0 for run in runs]
    return Cell(runs, failed, spread(values, fraction=fractions[runs[0].record.metric.name or ""]))


def _column(task: str, cells: Sequence[Cell], groups: Sequence[Group]) -> Column:
    records = [cell.runs[0].record for cell in cells if cell.runs]
    shared = {name: {settings.value(record, name) for record in records} for name in settings.COMPARABLE}
    one = {name: next(iter(found)) if len(found) == 1 else None for name, found in shared.items()}
    column = Column(
        task,
        metric=one["metric.name"],
        reading=checkpoint_text(one["metric.checkpoint"], one["metric.split"], one["data.protocol"]),
        higher_is_better=one["metric.higher_is_better"],
        marks=NONE,
        mixed=tuple(settings.OBSERVED[name] for name, found in shared.items() if len(found) > 1),
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
    runs = [run for part in (row.runs, row.failed) for runs in part.values() for run in runs]
    return sorted({settings.value(run.record, BUDGET) for run in runs}, key=settings.sort_key)


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
