"""Runs with another metric of theirs in the place of their task's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from analysis.errors import AnalysisError
from analysis.records.discovery import Run
from trainer.objectives.metrics import METRICS
from trainer.record import Metric, Record

_TASKS = "task.source.tasks."  # begins the settings of a record that are weights of tasks


def chosen(runs: Iterable[Run], name: str) -> tuple[list[Run], list[Run]]:
    """Runs that report a metric of their record, and the done ones that don't have it. Others stay as they are.

    name: as in the record's `metrics`: `f1`, or `validation_mismatched.accuracy` of a further split. Raises
    `AnalysisError` where no run has it.
    """
    found: list[Run] = []
    lacking: list[Run] = []
    known: set[str] = set()
    for run in runs:
        values = _values(run.record)
        known |= values.keys()
        if not run.done:
            found.append(run)
        elif name in values:
            found.append(Run(run.path, dataclasses.replace(run.record, metric=_metric(run.record, name, values[name]))))
        else:
            lacking.append(run)
    if name not in known:
        raise AnalysisError(f"--metric: {name!r}, the records have: {', '.join(sorted(known)) or 'none'}")
    return found, lacking


def _values(record: Record) -> dict[str, float]:
    own = {} if record.metric.value is None or record.metric.name is None else {record.metric.name: record.metric.value}
    return own | record.metrics


def _metric(record: Record, name: str, value: float) -> Metric:
    """checkpoint and step stay: the checkpoint was chosen by the task's own metric."""
    if name == record.metric.name:
        return record.metric
    split, _, own = name.rpartition(".")
    # Of a mixture of tasks `accuracy_piqa` is the accuracy of one.
    tasks = [key.removeprefix(_TASKS) for key in record.config if key.startswith(_TASKS)]
    known = METRICS.get(own) or METRICS.get(
        next((own.removesuffix(f"_{t}") for t in tasks if own.endswith(f"_{t}")), "")
    )
    return dataclasses.replace(
        record.metric,
        name=name,
        value=value,
        # A record says both of its task's own metric alone; of one that is not known no best is marked.
        higher_is_better=None if known is None else known.higher_is_better,
        percent=None if known is None else known.percent,
        split=split or record.metric.split,
        positive=record.data.positive if own == "f1" else None,
    )
