"""A metric over many resamples of the examples at once.

Scikit-learn computes a metric for one sample; a bootstrap of thousands of resamples would spend
minutes in its checks. Here resamples are rows of an array, with the definitions that the runs were
scored with:

- accuracy
- f1: of the positive class in a task with two classes, 0 if it is neither predicted nor there; in a
  task with more it is f1_macro
- f1_macro: the mean of F1 over the task's classes; one that is neither predicted nor there counts as 0
- matthews: 0 if all predictions or all labels are one class (Gorodkin 2004 for several classes)
- pearson, spearman: 0 if all predictions or all labels are equal
- rmse
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Classes:
    """The classes of a task, whatever the rows at hand hold: how many, and the id of the one that f1 of two is of."""

    count: int
    positive: int = 1


def over_resamples(
    metric: str, labels: np.ndarray, predictions: np.ndarray, index: np.ndarray, classes: Classes
) -> np.ndarray:
    """The metric of m models on R resamples, shape (m, R).

    `labels` (n,) and `predictions` (m, n) are ids of `classes` or numbers, `index` (R, k) holds places in
    0 … n − 1. Raises `KeyError` for a metric that is not in `KNOWN`.
    """
    return KNOWN[metric](labels, predictions, index, classes)


def _accuracy(labels: np.ndarray, predictions: np.ndarray, index: np.ndarray, classes: Classes) -> np.ndarray:
    n, resamples = len(labels), len(index)
    # How often each example is in each resample; then the resamples are one product of matrices.
    places = index + n * np.arange(resamples)[:, None]
    times = np.bincount(places.ravel(), minlength=n * resamples).reshape(resamples, n)
    right = (predictions == labels).astype(np.float64)
    return right @ times.T.astype(np.float64) / index.shape[1]


def _f1(labels: np.ndarray, predictions: np.ndarray, index: np.ndarray, classes: Classes) -> np.ndarray:
    if classes.count > 2:
        return _f1_macro(labels, predictions, index, classes)
    return _f1_by_class(labels, predictions, index, classes)[..., classes.positive]


def _f1_macro(labels: np.ndarray, predictions: np.ndarray, index: np.ndarray, classes: Classes) -> np.ndarray:
    return _f1_by_class(labels, predictions, index, classes).mean(axis=-1)


def _f1_by_class(labels: np.ndarray, predictions: np.ndarray, index: np.ndarray, classes: Classes) -> np.ndarray:
    """F1 (m, R, K), 0 for classes that are neither predicted nor there."""
    values = []
    for one in predictions:
        counts = _confusion(labels, one, index, classes)
        both = counts.sum(axis=-1) + counts.sum(axis=-2)
        right = np.diagonal(counts, axis1=-2, axis2=-1)
        values.append(np.divide(2 * right, both, out=np.zeros_like(both), where=both > 0))
    return np.stack(values)


def _matthews(labels: np.ndarray, predictions: np.ndarray, index: np.ndarray, classes: Classes) -> np.ndarray:
    values = []
    for one in predictions:
        counts = _confusion(labels, one, index, classes)
        total = counts.sum(axis=(-2, -1))
        true, predicted = counts.sum(axis=-1), counts.sum(axis=-2)
        right = np.trace(counts, axis1=-2, axis2=-1)
        covariance = right * total - (true * predicted).sum(axis=-1)
        spread = (total**2 - (true**2).sum(axis=-1)) * (total**2 - (predicted**2).sum(axis=-1))
        values.append(np.divide(covariance, np.sqrt(spread), out=np.zeros_like(covariance), where=spread > 0))
    return np.stack(values)


def _confusion(labels: np.ndarray, predictions: np.ndarray, index: np.ndarray, classes: Classes) -> np.ndarray:
    """Counts (R, K, K) of label, prediction."""
    size, resamples = classes.count, len(index)
    codes = labels.astype(np.int64) * size + predictions.astype(np.int64)
    places = codes[index] + size**2 * np.arange(resamples)[:, None]
    counts = np.bincount(places.ravel(), minlength=size**2 * resamples)
    return counts.reshape(resamples, size, size).astype(np.float64)


def _pearson(labels: np.ndarray, predictions: np.ndarray, index: np.ndarray, classes: Classes) -> np.ndarray:
    y = labels.astype(np.float64)[index]
    return np.stack([_correlation(one.astype(np.float64)[index], y) for one in predictions])


def _spearman(labels: np.ndarray, predictions: np.ndarray, index: np.ndarray, classes: Classes) -> np.ndarray:
    # Spearman's correlation is Pearson's of the ranks, ties sharing theirs.
    y = stats.rankdata(labels[index], axis=-1)
    return np.stack([_correlation(stats.rankdata(one[index], axis=-1), y) for one in predictions])


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of constant input: 0, as below
        values = np.asarray(stats.pearsonr(x, y, axis=-1).statistic)
    constant = (np.ptp(x, axis=-1) == 0) | (np.ptp(y, axis=-1) == 0)
    return np.where(constant | ~np.isfinite(values), 0.0, values)


def _rmse(labels: np.ndarray, predictions: np.ndarray, index: np.ndarray, classes: Classes) -> np.ndarray:
    squares = (predictions.astype(np.float64) - labels.astype(np.float64)) ** 2
    return np.stack([np.sqrt(one[index].mean(axis=-1)) for one in squares])


KNOWN: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, Classes], np.ndarray]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "f1_macro": _f1_macro,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
    "rmse": _rmse,
}
OF_CLASSES = ("f1", "f1_macro", "matthews")  # that depend on how many there are
