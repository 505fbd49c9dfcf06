"""Metrics of a mixture of tasks: those of each task, and as the run's own their mean over the tasks.

Each stays a formula of sums over examples: a task's numbers are columns of their own, 0 on examples of other tasks, so
that `analysis` computes and resamples the mean as it does any metric.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trainer.errors import ConfigError
from trainer.objectives import formula

if TYPE_CHECKING:
    from trainer.data.rows import Rows
    from trainer.objectives.objective import Objective, Predictions


def check(objective: Objective) -> None:
    """Raises `ConfigError` for a metric that is no formula of sums, of which a mean over tasks would be none either."""
    if objective.content.shares is None:
        return
    allowed = [name for name, metric in objective.metrics.items() if metric.formula is not None]
    for name in objective.asked:
        if name not in allowed:
            raise ConfigError(f"task.metrics: {name!r} in a mixture of tasks; allowed: {', '.join(allowed)}")


def scored(objective: Objective, rows: Rows, found: Predictions) -> tuple[Predictions, dict[str, float]]:
    """Returns the predictions, with numbers by task in a mixture, and the metrics. found: of `rows`."""
    if objective.content.shares is None:
        return found, objective.score(found)
    of_split = objective.content.splits[rows.split]["task"]
    tasks = np.array([of_split[example] for example in rows.examples])
    numbers = dict(found.stats)
    for task in objective.content.shares:
        mine = (tasks == task).astype(np.float64)
        numbers[f"examples_{task}"] = mine
        numbers |= {f"{name}_{task}": np.where(mine, values, 0.0) for name, values in found.stats.items()}
    sums = {name: np.sum(column) for name, column in numbers.items()}
    metrics = {name: float(formula.value(text, sums)) for name, text in formulas(objective.formulas, objective).items()}
    return dataclasses.replace(found, stats=numbers), metrics


def formulas(own: Mapping[str, str], objective: Objective) -> dict[str, str]:
    """Formulas of the requested metrics by name: of a mixture their means over tasks, and `NAME_TASK` of each task."""
    if objective.content.shares is None:
        return dict(own)
    tasks: Sequence[str] = list(objective.content.shares)
    by_task = {(name, task): _of_task(text, task) for name, text in own.items() for task in tasks}
    means = {name: f"({' + '.join(by_task[name, task] for task in tasks)}) / {len(tasks)}" for name in own}
    return means | {f"{name}_{task}": text for (name, task), text in by_task.items()}


def _of_task(text: str, task: str) -> str:
    """A formula of the sums of one task."""
    names = "|".join(map(re.escape, formula.names(text)))
    return re.sub(rf"\b({names})\b(?!\()", rf"\1_{task}", text)
