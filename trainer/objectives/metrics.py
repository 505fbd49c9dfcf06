"""Metrics by name, computed with scikit-learn and scipy.

Of classes:

- accuracy
- f1: of the positive class in a task with two classes, as GLUE has it, and 0 if that class is
  neither predicted nor there; in a task with more it is f1_macro
- f1_macro: the mean of F1 over the task's classes; one that is neither predicted nor there
  counts as 0 (scikit-learn's `f1_score` with all classes as `labels`)
- matthews: 0 if all predictions or all labels are one class, as GLUE has it

How many classes there are, and which of two is the positive one, is the task's affair and never
that of the rows at hand: on a split without a class, or in a resample, a metric means the same.

Of numbers:

- pearson, spearman: 0 if all predictions or all labels are equal, where no correlation is defined
- rmse: the one metric here that is better when lower

Nothing here is ever nan: predictions that aren't finite are an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class _Metric:
    function: Callable[[np.ndarray, np.ndarray, Classes], float]  # of predictions and labels, both of shape (n,)
    regression: bool = False
    higher_is_better: bool = True
    by_class: bool = False  # a mean over classes, to which one without rows brings nothing


@dataclass(frozen=True)
class Classes:
    """The classes of a task as metrics need them: how many, and the id of the one that f1 of two is of."""

    count: int
    positive: int = 1


NUMBERS = Classes(1, 0)  # of a regression


def classes(labels: Sequence[str] | None, positive: Any, names: Sequence[str]) -> Classes:
    """Those of a task with these class names (None: a regression), of which `task.positive` names the positive one.

    Null is the second of two, in the order of their ids. Raises `ConfigError`, also where none of `names`, the
    metrics that are asked for, depends on it.
    """
    if positive is not None and "f1" not in names:
        raise ConfigError(f"task.positive: {positive!r} without f1 in task.metrics; allowed: null")
    if labels is None or len(labels) != 2:
        if positive is not None:
            kind = "a regression" if labels is None else f"a task with {len(labels)} classes"
            raise ConfigError(f"task.positive: {positive!r} in {kind}; allowed: null; only one of two is positive")
        return NUMBERS if labels is None else Classes(len(labels))
    if positive is None:
        return Classes(2)
    if str(positive) not in labels:
        raise ConfigError(f"task.positive: {positive!r}; allowed: {', '.join(map(repr, labels))}, or null")
    return Classes(2, list(labels).index(str(positive)))


def positive(names: Sequence[str], labels: Sequence[str] | None, classes: Classes) -> str | None:
    """The name of the class that f1 is of; None where it is none of `names`, or a mean over classes."""
    return labels[classes.positive] if labels is not None and len(labels) == 2 and "f1" in names else None


def compute(names: Sequence[str], predictions: Any, labels: Any, classes: Classes) -> dict[str, float]:
    """The metrics `names`, in that order, of n predictions (class ids or numbers) and n labels.

    Raises `ConfigError` for an unknown name, `ValueError` for arrays that are empty, of
    different or wrong shape, or not finite, and for an id that is no class of the task.
    """
    import numpy as np

    functions = {name: _metric(name).function for name in names}
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or predictions.ndim != 1 or not len(labels):
        raise ValueError(f"predictions {predictions.shape} and labels {labels.shape}: expected (n,) twice, n > 0")
    for what, values in (("predictions", predictions), ("labels", labels)):
        broken = int((~np.isfinite(values)).sum())
        if broken:
            raise ValueError(f"{broken} of {len(values)} {what} are not finite")
        if classes != NUMBERS and (values.min() < 0 or values.max() >= classes.count):
            raise ValueError(f"{what} {values.min()} to {values.max()} in a task with {classes.count} classes")
    return {name: float(function(predictions, labels, classes)) for name, function in functions.items()}


def means_over_classes(names: Sequence[str], count: int) -> list[str]:
    """Those of `names` that, in a task with `count` classes, are lower where a class has no row."""
    return [name for name in names if _metric(name).by_class and (count > 2 or name != "f1")]


def check(names: Sequence[str], *, regression: bool) -> None:
    """Raises `ConfigError` unless `names` are metrics, one or more, of this kind of task."""
    if not names:
        raise ConfigError("task.metrics: empty; allowed: one or more, the first is the task's")
    for name in names:
        if _metric(name).regression != regression:
            kind = "regression" if regression else "classification"
            allowed = ", ".join(other for other, metric in _METRICS.items() if metric.regression == regression)
            raise ConfigError(f"task.metrics: {name!r} in a {kind}; allowed: {allowed}")


def higher_is_better(name: str) -> bool:
    """Whether more is better. Raises `ConfigError` for an unknown name."""
    return _metric(name).higher_is_better


def _metric(name: str) -> _Metric:
    try:
        return _METRICS[name]
    except KeyError:
        raise ConfigError(f"task.metrics: {name!r}; allowed: {', '.join(_METRICS)}") from None


def _accuracy(predictions: np.ndarray, labels: np.ndarray, classes: Classes) -> float:
    return float((predictions == labels).mean())


def _f1(predictions: np.ndarray, labels: np.ndarray, classes: Classes) -> float:
    from sklearn.metrics import f1_score

    if classes.count > 2:
        return _f1_macro(predictions, labels, classes)
    return float(f1_score(labels == classes.positive, predictions == classes.positive, zero_division=0.0))


def _f1_macro(predictions: np.ndarray, labels: np.ndarray, classes: Classes) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, labels=range(classes.count), average="macro", zero_division=0.0))


def _matthews(predictions: np.ndarray, labels: np.ndarray, classes: Classes) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def _pearson(predictions: np.ndarray, labels: np.ndarray, classes: Classes) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predictions, labels)


def _spearman(predictions: np.ndarray, labels: np.ndarray, classes: Classes) -> float:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, predictions, labels)


def _correlation(function: Callable[..., Any], predictions: np.ndarray, labels: np.ndarray) -> float:
    import numpy as np

    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    # in float64, since the squares of large float32 numbers are infinite
    value = float(function(predictions.astype(np.float64), labels.astype(np.float64)).statistic)
    return value if np.isfinite(value) else 0.0  # spread below the last digit is no spread


def _rmse(predictions: np.ndarray, labels: np.ndarray, classes: Classes) -> float:
    import numpy as np

    return float(np.sqrt(np.mean((predictions.astype(np.float64) - labels.astype(np.float64)) ** 2)))


_METRICS = {
    "accuracy": _Metric(_accuracy),
    "f1": _Metric(_f1, by_class=True),
    "f1_macro": _Metric(_f1_macro, by_class=True),
    "matthews": _Metric(_matthews),
    "pearson": _Metric(_pearson, regression=True),
    "spearman": _Metric(_spearman, regression=True),
    "rmse": _Metric(_rmse, regression=True, higher_is_better=False),
}
