"""Ranks the rows of a comparison over tasks: average ranks, Friedman's and Nemenyi's tests."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.comparison.words import listed
from analysis.records import settings
from analysis.stats import ranks
from analysis.stats.ranks import Friedman
from analysis.tables.rows import Row


@dataclass(frozen=True)
class Overall:
    """Ranks of rows by their means over all done seeds, on the tasks that all rows have."""

    rows: list[Row]
    tasks: list[str]
    left_out: list[str]  # tasks and rows that are not ranked, with the reason
    average: list[float]  # by row, 1 is the best; empty for fewer than two rows or tasks
    untested: str | None  # the reason why nothing is tested
    friedman: Friedman | None
    nemenyi: np.ndarray | None  # p of each two rows; None if Friedman's test does not reject
    critical_difference: float | None


def build(rows: Sequence[Row], tasks: Sequence[str]) -> Overall:
    """Ranks the rows. Rows without a done run, and tasks that some row lacks, are left out."""
    ranked = [row for row in rows if any(row.runs.values())]
    left_out = [f"{row.label} (no run is done)" for row in rows if row not in ranked]
    reasons = {task: _incomparable(ranked, task) for task in tasks if any(row.runs.get(task) for row in ranked)}
    left_out += [f"{task} ({reason})" for task, reason in reasons.items() if reason]
    common = [task for task, reason in reasons.items() if not reason]
    matrix = np.asarray([[_goodness(row, task) for row in ranked] for task in common], dtype=np.float64)
    average = [float(rank) for rank in ranks.average(matrix)] if min(len(common), len(ranked)) > 1 else []
    untested = _too_few(len(common), len(ranked))
    if untested:
        return Overall(ranked, common, left_out, average, untested, None, None, None)
    friedman = ranks.friedman(matrix)
    return Overall(
        *(ranked, common, left_out, average, None, friedman),
        nemenyi=ranks.nemenyi(matrix) if friedman.rejects else None,
        critical_difference=ranks.critical_difference(len(ranked), len(common)),
    )


def _too_few(tasks: int, rows: int) -> str | None:
    if tasks >= ranks.FEWEST_TASKS and rows >= ranks.FEWEST_METHODS:
        return None
    return (
        f"a test of ranks needs {ranks.FEWEST_TASKS} tasks that all rows have and {ranks.FEWEST_METHODS} rows; "
        f"here: {tasks} and {rows}"
    )


def _incomparable(rows: Sequence[Row], task: str) -> str | None:
    without = [row.label for row in rows if not row.runs.get(task)]
    if without:
        return f"no done run of {listed(without)}"
    points = [row.points[task][0] for row in rows]
    mixed = [settings.PROTOCOL[n] for n in settings.COMPARABLE if len({point.value(n) for point in points}) > 1]
    if mixed:
        return f"the rows differ in {listed(mixed)}"
    if points[0].value("metric.higher_is_better") is None:
        return "no run says whether higher is better"
    return None


def _goodness(row: Row, task: str) -> float:
    """The mean over the row's seeds, negated if lower is better."""
    metrics = [run.record.metric for run in row.runs[task]]
    # An exact mean, as in tables, so that equal runs share a rank.
    mean = float(statistics.mean(metric.value or 0.0 for metric in metrics))
    return mean if metrics[0].higher_is_better else -mean
