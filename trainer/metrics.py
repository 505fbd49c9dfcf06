"""Metrics by name, computed with scikit-learn and scipy.

Of classes:

- accuracy
- f1: of class 1 where there are two classes, as GLUE has it, and 0 if class 1 is neither
  predicted nor there; with more classes it is f1_macro
- f1_macro: the mean of F1 over the classes that are predicted or there
- matthews: 0 if all predictions or all labels are one class, as GLUE has it

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
    function: Callable[[np.ndarray, np.ndarray], float]  # of predictions and labels, both of shape (n,)
    regression: bool = False
    higher_is_better: bool = True


def compute(names: Sequence[str], predictions: Any, labels: Any) -> dict[str, float]:
    """The metrics `names`, in that order, of n predictions (class ids or numbers) and n labels.

    Raises `ConfigError` for an unknown name, `ValueError` for arrays that are empty, of
    different or wrong shape, or not finite.
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
    return {name: float(function(predictions, labels)) for name, function in functions.items()}


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


def _accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    return float((predictions == labels).mean())


def _f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    if max(predictions.max(), labels.max()) > 1:
        return _f1_macro(predictions, labels)
    return float(f1_score(labels, predictions, pos_label=1, zero_division=0.0))


def _f1_macro(predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def _matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def _pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predictions, labels)


def _spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, predictions, labels)


def _correlation(function: Callable[..., Any], predictions: np.ndarray, labels: np.ndarray) -> float:
    import numpy as np

    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    # in float64, since the squares of large float32 numbers are infinite
    value = float(function(predictions.astype(np.float64), labels.astype(np.float64)).statistic)
    return value if np.isfinite(value) else 0.0  # spread below the last digit is no spread


def _rmse(predictions: np.ndarray, labels: np.ndarray) -> float:
    import numpy as np

    return float(np.sqrt(np.mean((predictions.astype(np.float64) - labels.astype(np.float64)) ** 2)))


_METRICS = {
    "accuracy": _Metric(_accuracy),
    "f1": _Metric(_f1),
    "f1_macro": _Metric(_f1_macro),
    "matthews": _Metric(_matthews),
    "pearson": _Metric(_pearson, regression=True),
    "spearman": _Metric(_spearman, regression=True),
    "rmse": _Metric(_rmse, regression=True, higher_is_better=False),
}
