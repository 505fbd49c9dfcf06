"""Which value of a setting, such as the learning rate, is best for each method on each task.

Rates are tuned on the selection split (`data.protocol=split`) with seeds that the report does not use, so that the
reported split decides nothing. A failed run counts as worse than any finished one: a rate at which a run diverged is
never the best. Source of the requirements: Lee et al. 2026, "Learning Rate Matters", arXiv 2602.04998.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from analysis.errors import AnalysisError
from analysis.records.discovery import Run
from analysis.records.runs import RunSet

BY = ("select", "report")
GOOD = 0.95  # share of the best mean that a value must reach to be in the good range


@dataclass
class Trials:
    """The runs of one method on one task, by the value of the tuned setting."""

    variant: str
    task: str
    runs: dict[float, dict[int, Run]] = field(default_factory=lambda: defaultdict(dict))  # value → seed → run


@dataclass(frozen=True)
class Choice:
    """The best value, and what it was chosen from.

    means: by value in ascending order, the mean over seeds of `metric`; None where a run failed. edge: whether the
    best value is the smallest or the largest, so that a better one may lie beyond it. good: the smallest and largest
    value of the unbroken range around the best one whose means reach `GOOD` of the best mean.
    """

    variant: str
    task: str
    value: float
    metric: str
    mean: float
    seeds: tuple[int, ...]
    means: Mapping[float, float | None]
    edge: bool
    good: tuple[float, float]

    @property
    def decades(self) -> float:
        """Width of the good range on a logarithmic scale."""
        return math.log10(self.good[1] / self.good[0])


def choose(runs: RunSet, setting: str = "optim.lr", by: str = "select") -> list[Choice]:
    """The choices of all methods and tasks of `runs`, sorted by task and method.

    setting: dotted name of the tuned setting, whose values are numbers > 0. by: "select" for the selection split,
    "report" for the reported one. Raises `AnalysisError` where the trials can't be compared: several rows of one
    method on a task, unequal seeds, runs without the metric, no finished run.
    """
    return choices(runs.runs, setting, by)


def choices(runs: Iterable[Run], setting: str, by: str) -> list[Choice]:
    """`choose` for a part of the runs."""
    return [_choice(trials, setting, by) for trials in _trials(runs, setting)]


def _trials(runs: Iterable[Run], setting: str) -> list[Trials]:
    found: dict[tuple[str, str], Trials] = {}
    others: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)  # settings besides the tuned one
    for run in runs:
        record = run.record
        if record.status == "pruned":
            raise AnalysisError(f"{run.path}: pruned by a search, so its trials are not equal; allowed: whole runs")
        settings = dict(record.identity or record.config)
        value, seed = record.config.get(setting), record.seed
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise AnalysisError(f"{run.path}: {setting}: {value!r}, allowed: a number > 0")
        settings = {name: value for name, value in settings.items() if name not in (setting, "seed")}
        key = (record.task, record.variant)
        others[key][json.dumps(settings, sort_keys=True)] = settings
        found.setdefault(key, Trials(record.variant, record.task)).runs[float(value)][seed] = run
    for (task, variant), kinds in others.items():
        if len(kinds) > 1:
            first, second, *_ = kinds.values()
            names = sorted(n for n in {*first, *second} if first.get(n) != second.get(n))
            raise AnalysisError(f"{variant} on {task}: runs differ in {', '.join(names)}; choose within one value")
    return [found[key] for key in sorted(found)]


def _choice(trials: Trials, setting: str, by: str) -> Choice:
    what = f"{trials.variant} on {trials.task}"
    every = {seed for runs in trials.runs.values() for seed in runs}
    for value, runs in sorted(trials.runs.items()):
        if missing := every - runs.keys():
            raise AnalysisError(f"{what}: {setting} {value:g} has no run of seed {min(missing)}; all values need it")
    done = [run for runs in trials.runs.values() for run in runs.values() if run.done]
    if not done:
        raise AnalysisError(f"{what}: no finished run")
    first = done[0].record.metric
    assert first.name is not None
    means = {
        value: _mean([_value(run, first.name, by) for run in runs.values()])
        for value, runs in sorted(trials.runs.items())
    }
    sign = 1 if first.higher_is_better else -1
    ranked = [(sign * mean, -value) for value, mean in means.items() if mean is not None]
    if not ranked:
        raise AnalysisError(f"{what}: a run failed at every {setting}")
    best = -max(ranked)[1]  # of equal means the smallest value
    mean = means[best]
    assert mean is not None
    return Choice(
        trials.variant,
        trials.task,
        best,
        first.name,
        mean,
        tuple(sorted(every)),
        means,
        best in (min(means), max(means)),
        _good(means, best, sign),
    )


def _value(run: Run, metric: str, by: str) -> float | None:
    """The run's metric on the split that decides; None for a failed run."""
    if not run.done:
        return None
    values = run.record.select if by == "select" else run.record.metrics
    if metric not in values:
        hint = "; run with data.protocol=split, or choose --by report" if by == "select" else ""
        raise AnalysisError(f"{run.path}: no {metric} on the split {by!r}{hint}")
    return values[metric]


def _mean(values: list[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return math.fsum(numbers) / len(numbers) if len(numbers) == len(values) else None


def _good(means: Mapping[float, float | None], best: float, sign: int) -> tuple[float, float]:
    """The ends of the unbroken range around `best` whose means lose at most 1 − `GOOD` of the best mean's size."""
    values, at = list(means), list(means).index(best)
    top = means[best]
    assert top is not None
    least = sign * top - (1 - GOOD) * abs(top)

    def is_good(index: int) -> bool:
        mean = means[values[index]]
        return mean is not None and sign * mean >= least

    low = high = at
    while low > 0 and is_good(low - 1):
        low -= 1
    while high < len(values) - 1 and is_good(high + 1):
        high += 1
    return values[low], values[high]
