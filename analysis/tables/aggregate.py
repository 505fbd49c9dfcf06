"""The runs of a row → what a table needs of them, each run read once and let go."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from analysis.records.reader import Values
from analysis.tables import costs, glue, needed_fields
from analysis.tables.costs import NO_MEANS, Means, Totals
from analysis.tables.glue import Columns
from analysis.tables.rows import Row

_AT_ONCE = 256  # runs read together; as many may wait for their costs


@dataclass(frozen=True, slots=True)
class Tally:
    """Done runs of one row on one task, by seed."""

    metric: str
    seeds: tuple[int, ...]
    values: array[float]  # the metric's, as measured
    scores: array[float]  # see glue.py; empty where a metric is missing
    lacking: tuple[str, ...]  # the metrics that are
    means: Means


@dataclass(frozen=True, slots=True)
class Spent:
    """The costs of a row over all its done runs."""

    means: Means
    started: tuple[int, int] | None  # the fewest and the most parameters at a run's start
    resized: bool  # whether a run that reports its best checkpoint changed in size


def tallied(row: Row, tasks: Iterable[str], every_cost: bool) -> tuple[list[Tally | None], Spent]:
    """For each task its tally, None where no run is done; then that of all. every_cost: with the costs of each task."""
    over_all = _Over()
    tallies = [_task(row, task, over_all, every_cost) if row.runs.get(task) else None for task in tasks]
    return tallies, over_all.spent()


class _Over:
    """What is gathered over the tasks of a row."""

    def __init__(self) -> None:
        self._totals = Totals()
        self._waiting: list[Values] = []
        self._started: tuple[int, int] | None = None
        self._resized = False

    def add(self, some: list[Values], columns: Columns, best: bool) -> None:
        """Adds runs, and the same by columns; best: their number is from their best checkpoint."""
        counts = [count for count in columns["params.adapter_start"] if count is not None]
        if counts:
            low, high = self._started or (counts[0], counts[0])
            self._started = min(low, *counts), max(high, *counts)
        if best:
            sizes = zip(*(columns[f"params.{name}"] for name in _SIZES), strict=True)
            self._resized = self._resized or any(len({*own} - {None}) > 1 for own in set(sizes))
        self._waiting += some  # costs are added for many runs at once
        if len(self._waiting) > _AT_ONCE:
            self._pay()

    def spent(self) -> Spent:
        """The costs of all runs that were added."""
        if self._waiting:
            self._pay()
        return Spent(self._totals.means(), self._started, self._resized)

    def _pay(self) -> None:
        self._totals.add(costs.values(_columns(self._waiting)))
        self._waiting.clear()


_SIZES = ("adapter_start", "adapter_end", "effective")


def _task(row: Row, task: str, over_all: _Over, every_cost: bool) -> Tally:
    metric, checkpoint, *_ = row.points[task][0].observed
    values, scores = array("d"), array("d")
    seeds: list[int] = []  # of any size
    lacking: set[str] = set()
    totals = Totals()
    runs = row.runs[task].brief()
    while some := list(itertools.islice(runs, _AT_ONCE)):
        columns = _columns(some)
        seeds.extend(columns["seed"])
        values.extend(columns["metric.value"])
        lacking.update(glue.lacking(task, columns))
        if task in glue.AVERAGED and not lacking:
            scores.extend(glue.scores(task, columns))
        if every_cost:
            totals.add(costs.values(columns))
        over_all.add(some, columns, best=checkpoint == "best")
    if lacking:
        scores = array("d")
    elif task not in glue.AVERAGED:
        scores = values
    means = totals.means() if every_cost else NO_MEANS
    return Tally(metric or "", tuple(seeds), values, scores, tuple(sorted(lacking)), means)


def _columns(some: Iterable[Values]) -> Columns:
    return dict(zip(needed_fields.NAMES, zip(*some, strict=True), strict=True))
