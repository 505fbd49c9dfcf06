"""The score of a task in GLUE's average.

Source: A. Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
Understanding", ICLR 2019: tasks with two metrics, and MNLI with its two validation sets, count
once, with the mean of the two. Every other task counts with its own metric.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from trainer.record import Record

# Names in a record's `metrics`; those of the second split start with its name.
AVERAGED = {
    "mnli": ("accuracy", "validation_mismatched.accuracy"),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": ("pearson", "spearman"),
}


def scores(task: str, records: Iterable[Record]) -> list[float]:
    """The score of each run. records: done runs of a task, none of which is `lacking` a metric."""
    names = AVERAGED.get(task)
    if names is None:
        return [record.metric.value for record in records if record.metric.value is not None]
    return [statistics.fmean(record.metrics[name] for name in names) for record in records]


def lacking(task: str, records: Sequence[Record]) -> list[str]:
    """The metrics that `scores` needs and some run lacks."""
    return [name for name in AVERAGED.get(task, ()) if any(name not in record.metrics for record in records)]
