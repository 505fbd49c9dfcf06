"""A task's score as GLUE averages it.

Source: A. Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
Understanding", ICLR 2019: tasks with two metrics, and MNLI with its two validation sets, count
once, with the mean of the two. Every other task counts with its own metric.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

# Names in a record's `metrics`: the second split's have its name in front.
AVERAGED = {
    "mnli": ("accuracy", "validation_mismatched.accuracy"),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": ("pearson", "spearman"),
}


METRICS = tuple(dict.fromkeys(name for names in AVERAGED.values() for name in names))

Columns = Mapping[str, Sequence[Any]]  # by name what the rows of some runs have


def scores(task: str, columns: Columns) -> list[float]:
    """The score of each of some done runs of a task, none `lacking` a metric that GLUE averages."""
    names = AVERAGED.get(task)
    if names is None:
        return list(columns["metric.value"])
    return list(map(statistics.fmean, zip(*(columns[f"metrics.{name}"] for name in names), strict=True)))


def lacking(task: str, columns: Columns) -> list[str]:
    """The metrics that `scores` misses in some of the runs."""
    return [name for name in AVERAGED.get(task, ()) if None in columns[f"metrics.{name}"]]
