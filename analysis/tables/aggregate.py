"""Aggregates the runs of a row over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from analysis.tables import glue
from analysis.tables.costs import NO_MEANS, Means
from analysis.tables.rows import Row
from trainer.record import Record


@dataclass(frozen=True, slots=True)
class Tally:
    """Done runs of one row on one task, sorted by seed."""

    metric: str
    seeds: tuple[int, ...]
    values: list[float]  # of the metric, as measured
    scores: list[float]  # see glue.py; empty if a metric is missing
    lacking: tuple[str, ...]  # the missing metrics
    means: Means
    percent: bool | None = None  # whether the metric is printed ×100; None where no record says so


@dataclass(frozen=True, slots=True)
class Spent:
    """The costs of a row, over all its done runs."""

    means: Means
    started: tuple[int, int] | None  # the smallest and largest number of parameters at the start
    resized: bool  # whether a run with a best checkpoint changed its size


def tallied(row: Row, tasks: Iterable[str], every_cost: bool, as_glue: bool) -> tuple[list[Tally | None], Spent]:
    """The tally of each task, None if no run is done, and the costs over all tasks.

    every_cost: whether each task has its costs. as_glue: whether scores are GLUE's, or else the column's metric.
    """
    by_task = {task: [run.record for run in row.runs.get(task, ())] for task in tasks}
    tallies = [
        _task(task if as_glue else "", records, every_cost) if records else None for task, records in by_task.items()
    ]
    return tallies, _spent([record for records in by_task.values() for record in records])


def _task(task: str, records: Sequence[Record], every_cost: bool) -> Tally:
    lacking = glue.lacking(task, records)
    return Tally(
        records[0].metric.name or "",
        tuple(record.seed for record in records),
        [record.metric.value for record in records if record.metric.value is not None],
        [] if lacking else glue.scores(task, records),
        tuple(sorted(lacking)),
        Means(records) if every_cost else NO_MEANS,
        next((record.metric.percent for record in records if record.metric.percent is not None), None),
    )


def _spent(records: Sequence[Record]) -> Spent:
    starts = [record.params.adapter_start for record in records if record.params.adapter_start is not None]
    sizes = [
        {record.params.adapter_start, record.params.adapter_end, record.params.effective} - {None}
        for record in records
        if record.metric.checkpoint == "best"
    ]
    started = (min(starts), max(starts)) if starts else None
    return Spent(Means(records), started, any(len(own) > 1 for own in sizes))
