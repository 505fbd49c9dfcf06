"""A task's score as GLUE averages it.

Source: A. Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
Understanding", ICLR 2019: tasks with two metrics, and MNLI with its two validation sets, count
once, with the mean of the two. Every other task counts with its own metric.
"""

from __future__ import annotations

import statistics

from trainer.record import Record

# Names in a record's `metrics`: the second split's have its name in front.
AVERAGED = {
    "mnli": ("accuracy", "validation_mismatched.accuracy"),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": ("pearson", "spearman"),
}


def score(record: Record) -> float | None:
    """The score of a done run on its task; None where the record lacks a metric that GLUE averages."""
    names = AVERAGED.get(record.task)
    if names is None:
        return record.metric.value
    found = [record.metrics.get(name) for name in names]
    known = [value for value in found if value is not None]
    return statistics.fmean(known) if len(known) == len(found) else None


def lacking(record: Record) -> list[tuple[str, str]]:
    """(task, metric) for every metric that `score` misses in a record."""
    return [(record.task, name) for name in AVERAGED.get(record.task, ()) if name not in record.metrics]
