"""A metric over many resamples of the examples at once.

Scikit-learn computes a metric for one sample; a bootstrap of thousands of resamples would spend minutes in its checks.
Here resamples are rows of an array, with the definitions that the runs were scored with: those of
`trainer.objectives.metrics`, and the formulas that lie beside the predictions of a kind of task of the user's own.
"""

from __future__ import annotations

import numpy as np

from analysis.stats.additive import Additive
from trainer.objectives.formula import names
from trainer.objectives.metrics import METRICS, Classes, statistics

KNOWN = METRICS


def over_resamples(
    metric: str,
    labels: np.ndarray,
    predictions: np.ndarray,
    index: np.ndarray,
    classes: Classes,
    additive: Additive | None = None,
) -> np.ndarray:
    """The metric of m models on R resamples, shape (m, R).

    `labels` (n,) and `predictions` (m, n) are ids of `classes` or numbers, `index` (R, k) holds places in
    0 … n − 1. additive: the metric as a formula of statistics, where these are known. Raises `KeyError` for a metric
    that is neither that nor in `KNOWN`.
    """
    if additive is not None:
        return additive.over(index)
    known = KNOWN[metric]
    if known.formula is not None:
        each = [statistics(names(known.formula), one, labels) for one in predictions]
        return Additive(known.formula, {name: np.stack([one[name] for one in each]) for name in each[0]}).over(index)
    if known.counted is not None:
        return np.stack([known.counted(_confusion(labels, one, index, classes), classes) for one in predictions])
    assert known.paired is not None
    return np.stack([known.paired(one[index], labels[index]) for one in predictions])


def _confusion(labels: np.ndarray, predictions: np.ndarray, index: np.ndarray, classes: Classes) -> np.ndarray:
    """Counts (R, K, K) of label, prediction."""
    size, resamples = classes.count, len(index)
    codes = labels.astype(np.int64) * size + predictions.astype(np.int64)
    places = codes[index] + size**2 * np.arange(resamples)[:, None]
    counts = np.bincount(places.ravel(), minlength=size**2 * resamples)
    return counts.reshape(resamples, size, size).astype(np.float64)


OF_CLASSES = tuple(name for name, metric in METRICS.items() if metric.counted)  # that depend on how many there are
