"""Metrics by name: what each is of, which way is better, and whether it is printed ×100.

A metric is defined once, here or in the file of a kind of task, for the run that is scored and for every resample of
its examples. It is one of three:

- a formula of sums over examples (see `formula`), as accuracy, perplexity and BLEU are;
- a function of how often each class was predicted for each, as F1 and Matthews's correlation are;
- a function of the pairs of numbers themselves, as a correlation is.

Of classes:

- accuracy
- f1: of the positive class in a task with two classes, as GLUE has it, and 0 if that class is
  neither predicted nor there; in a task with more it is f1_macro
- f1_macro: the mean of F1 over the task's classes; one that is neither predicted nor there
  counts as 0 (scikit-learn's `f1_score` with all classes as `labels`)
- matthews: 0 if all predictions or all labels are one class, as GLUE has it (Gorodkin 2004 for several classes)

How many classes there are, and which of two is the positive one, is the task's affair and never
that of the rows at hand: on a split without a class, or in a resample, a metric means the same.

Of numbers:

- pearson, spearman: 0 if all predictions or all labels are equal, where no correlation is defined
- rmse: better when lower

Of tokens' negative log-likelihoods (nats): loss, perplexity, bits_per_byte, all better when lower; of answers to choose
from, accuracy and accuracy_norm; of entities that were found (tp), made up (fp) and missed (fn), precision and recall;
of texts that were generated, those of `generated`; of transcripts, wer and cer, the errors (put in, left out, replaced)
over the words or characters of the right ones, better when lower and above 1 for more errors than words; of ratings,
rmse and mae; of rankings, ndcg_10 and recall_10, means over users.

Nothing here is ever nan: predictions that aren't finite are an error. This module imports no torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    Counted = Callable[[np.ndarray, "Classes"], np.ndarray]
    Paired = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Metric:
    """formula: of sums over examples. counted: of counts (…, K, K) by class of label and prediction. paired: of
    predictions and labels (…, n), over the last axis. One of the three is given.

    percent: whether it lies in −1…1 and is printed ×100. by_class: whether it is a mean over classes, to which one
    without rows brings nothing. positive: whether it is of one class in a task with two.
    """

    formula: str | None = None
    counted: Counted | None = None
    paired: Paired | None = None
    higher_is_better: bool = True
    percent: bool = True
    by_class: bool = False
    positive: bool = False


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

    chosen = {name: named(name) for name in names}
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or predictions.ndim != 1 or not len(labels):
        raise ValueError(f"predictions {predictions.shape} and labels {labels.shape}: expected (n,) twice, n > 0")
    for what, values in (("predictions", predictions), ("labels", labels)):
        broken = int((~np.isfinite(values)).sum())
        if broken:
            raise ValueError(f"{broken} of {len(values)} {what} are not finite")
        if classes != NUMBERS and (values.min() < 0 or values.max() >= classes.count):
            raise ValueError(f"{what} {values.min()} to {values.max()} in a task with {classes.count} classes")
    stats = statistics(("squared_error",) if classes == NUMBERS else ("correct",), predictions, labels)
    return {name: _value(metric, predictions, labels, stats, classes) for name, metric in chosen.items()}


def statistics(names: Iterable[str], predictions: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Of what formulas on classes or numbers sum up, `names` of it, for each example."""
    import numpy as np

    found = {}
    if "correct" in names:
        found["correct"] = (predictions == labels).astype(np.float64)
    if "squared_error" in names:
        found["squared_error"] = (predictions.astype(np.float64) - labels.astype(np.float64)) ** 2
    return found


def of_statistics(metric: Metric, stats: Mapping[str, Any], examples: int) -> float:
    """A metric with a formula, of statistics by name, each (examples,). Raises `ValueError` for one that lacks."""
    import numpy as np

    from trainer.objectives import formula

    assert metric.formula is not None
    sums = {name: np.sum(column) for name, column in stats.items()} | {"examples": examples}
    return float(formula.value(metric.formula, sums))


def counts(predictions: np.ndarray, labels: np.ndarray, classes: Classes) -> np.ndarray:
    """How often each class (K columns) was predicted for each (K rows)."""
    import numpy as np

    codes = labels.astype(np.int64) * classes.count + predictions.astype(np.int64)
    found = np.bincount(codes, minlength=classes.count**2)
    return found.reshape(classes.count, classes.count).astype(np.float64)


def _value(
    metric: Metric, predictions: np.ndarray, labels: np.ndarray, stats: Mapping[str, Any], classes: Classes
) -> float:
    if metric.formula is not None:
        return of_statistics(metric, stats, len(labels))
    if metric.counted is not None:
        return float(metric.counted(counts(predictions, labels, classes), classes))
    assert metric.paired is not None
    return float(metric.paired(predictions, labels))


def means_over_classes(names: Sequence[str], count: int) -> list[str]:
    """Those of `names` that, in a task with `count` classes, are lower where a class has no row."""
    by_class = [name for name in names if name in METRICS and METRICS[name].by_class]
    return [name for name in by_class if count > 2 or name != "f1"]


def check(names: Sequence[str], allowed: Iterable[str], kind: str) -> None:
    """Raises `ConfigError` unless `names` are metrics, one or more, among those that are `allowed` in this `kind`."""
    allowed = list(allowed)
    if not names:
        raise ConfigError("task.metrics: empty; allowed: one or more, the first is the task's")
    for name in names:
        if name not in allowed:
            raise ConfigError(f"task.metrics: {name!r} in a {kind}; allowed: {', '.join(allowed)}")


def higher_is_better(name: str) -> bool:
    """Whether more is better. Raises `ConfigError` for an unknown name."""
    return named(name).higher_is_better


def named(name: str) -> Metric:
    """One of `METRICS`. Raises `ConfigError` for an unknown name."""
    try:
        return METRICS[name]
    except KeyError:
        raise ConfigError(f"task.metrics: {name!r}; allowed: {', '.join(METRICS)}") from None


def _f1(counts: np.ndarray, classes: Classes) -> np.ndarray:
    if classes.count > 2:
        return _f1_macro(counts, classes)
    return _f1_by_class(counts)[..., classes.positive]


def _f1_macro(counts: np.ndarray, classes: Classes) -> np.ndarray:
    found: np.ndarray = _f1_by_class(counts).mean(axis=-1)
    return found


def _f1_by_class(counts: np.ndarray) -> np.ndarray:
    """F1 (…, K), 0 for classes that are neither predicted nor there."""
    import numpy as np

    both = counts.sum(axis=-1) + counts.sum(axis=-2)
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    return np.divide(2 * right, both, out=np.zeros_like(both), where=both > 0)


def _matthews(counts: np.ndarray, classes: Classes) -> np.ndarray:
    import numpy as np

    total = counts.sum(axis=(-2, -1))
    true, predicted = counts.sum(axis=-1), counts.sum(axis=-2)
    right = np.trace(counts, axis1=-2, axis2=-1)
    covariance = np.asarray(right * total - (true * predicted).sum(axis=-1))
    spread = np.asarray((total**2 - (true**2).sum(axis=-1)) * (total**2 - (predicted**2).sum(axis=-1)))
    return np.divide(covariance, np.sqrt(spread), out=np.zeros(covariance.shape), where=spread > 0)


def _pearson(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    import numpy as np

    # in float64, since the squares of large float32 numbers are infinite
    return _correlation(predictions.astype(np.float64), labels.astype(np.float64))


def _spearman(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    import numpy as np
    from scipy.stats import rankdata, spearmanr

    if predictions.ndim == 1 and np.ptp(predictions) and np.ptp(labels):
        value = np.asarray(spearmanr(predictions.astype(np.float64), labels.astype(np.float64)).statistic)
        return np.where(np.isfinite(value), value, 0.0)
    # Of many resamples at once, which scipy has no function for: Pearson's of the ranks, ties sharing theirs.
    return _correlation(rankdata(predictions, axis=-1), rankdata(labels, axis=-1))


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    import numpy as np
    from scipy import stats

    if x.shape[-1] < 2:
        return np.zeros(x.shape[:-1])
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of constant input: 0, as below
        values = np.asarray(stats.pearsonr(x, y, axis=-1).statistic)
    constant = (np.ptp(x, axis=-1) == 0) | (np.ptp(y, axis=-1) == 0)
    return np.where(constant | ~np.isfinite(values), 0.0, values)  # spread below the last digit is no spread


METRICS = {
    "accuracy": Metric("correct / examples"),
    "f1": Metric(counted=_f1, by_class=True, positive=True),
    "f1_macro": Metric(counted=_f1_macro, by_class=True),
    "matthews": Metric(counted=_matthews),
    "pearson": Metric(paired=_pearson),
    "spearman": Metric(paired=_spearman),
    "rmse": Metric("sqrt(squared_error / examples)", higher_is_better=False, percent=False),
    "precision": Metric("tp / (tp + fp)"),
    "recall": Metric("tp / (tp + fn)"),
    "loss": Metric("nll / tokens", higher_is_better=False, percent=False),
    "perplexity": Metric("exp(nll / tokens)", higher_is_better=False, percent=False),
    "bits_per_byte": Metric("nll / (bytes * log(2))", higher_is_better=False, percent=False),
    "wer": Metric("word_errors / words", higher_is_better=False),
    "cer": Metric("character_errors / characters", higher_is_better=False),
    "mae": Metric("absolute_error / ratings", higher_is_better=False, percent=False),
    "ndcg_10": Metric("ndcg / ranked"),
    "recall_10": Metric("recall / ranked"),
    "accuracy_norm": Metric("correct_norm / examples"),
    **{name: Metric(f"{name} / examples") for name in ("exact_match", "numeric_match", "token_f1")},
    **{name: Metric(f"{name} / examples") for name in ("rouge_1", "rouge_2", "rouge_l")},
    "bleu": Metric(f"bleu({', '.join(f'bleu_{n}' for n in range(10))})", percent=False),
    "chrf": Metric(f"chrf({', '.join(f'chrf_{n}' for n in range(18))})", percent=False),
}
