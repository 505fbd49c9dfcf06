"""Two methods over the same test examples.

Another draw of test examples would have given other metrics. How far that could move a difference
is asked of the saved predictions, with the trained models as they are:

- The bootstrap resamples examples, with all that was predicted for them, and computes the metric
  of both sides on each resample. The interval is the percentile one: with hundreds of examples or
  more it covers well for all the metrics here, it needs no derivative or jackknife, and it can't
  fail where both sides predict the same.
- McNemar's test, for accuracy and other shares of right answers, looks at the examples that one side alone gets right.

Several seeds are several pairs of models on one test set. One resample is therefore drawn for all
of them, and the mean over seeds is computed within it: what the models of different seeds get
wrong together stays together, which an average of the seeds' intervals would lose. Nothing is
concluded over seeds from it: these are the seeds at hand, and seeds.py speaks of others. The p
values of McNemar's tests of several seeds are not combined into one: they share their examples
and are far from independent. Examples are taken for independent of one another.

    Efron, "Bootstrap Methods: Another Look at the Jackknife", Annals of Statistics 1979
    McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 1947
    Dietterich, "Approximate Statistical Tests for Comparing Supervised Classification Learning
    Algorithms", Neural Computation 1998 (McNemar's test speaks of two trained models, not of two methods)
    Dror et al., "The Hitchhiker's Guide to Testing Statistical Significance in NLP", ACL 2018
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.stats import LEVEL
from analysis.stats.additive import Additive
from analysis.stats.metrics import over_resamples
from trainer.objectives.metrics import Classes

_ENTRIES = 2**20  # of an array of resamples × examples: what bounds the memory


@dataclass(frozen=True)
class Interval:
    """A − B on all examples, and its bootstrap interval of level LEVEL."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class McNemar:
    """Examples that one side alone gets right, and the exact two-sided p that they are as many."""

    a_alone: int
    b_alone: int
    p: float


def bootstrap(
    metric: str,
    labels: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    resamples: int,
    classes: Classes,
    additive: Additive | None = None,
) -> tuple[Interval, list[Interval]]:
    """Intervals of the mean over m seeds, and of each seed.

    `labels` is (n,) with n ≥ 2, `a` and `b` (m, n) are the predictions of the m models of each
    side. additive: the metric as a formula, with the statistics of A's models and then of B's, for predictions that are
    no numbers. The resamples are the same ones every time.
    """
    n, m, both = len(labels), len(a), np.concatenate([a, b])

    def differences(index: np.ndarray, axis: int = -1) -> np.ndarray:
        values = over_resamples(metric, labels, both, index.reshape(-1, n), classes, additive)
        by_seed = values[:m] - values[m:]
        return np.concatenate([by_seed.mean(axis=0, keepdims=True), by_seed])

    examples = np.arange(n)
    observed = differences(examples)[:, 0]
    interval = stats.bootstrap(
        (examples,),
        differences,
        vectorized=True,
        method="percentile",
        confidence_level=LEVEL,
        n_resamples=resamples,
        batch=max(1, _ENTRIES // n),
        rng=np.random.default_rng(0),
    ).confidence_interval
    mean, *by_seed = (
        Interval(float(d), float(low), float(high))
        for d, low, high in zip(observed, interval.low, interval.high, strict=True)
    )
    return mean, by_seed


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> McNemar:
    """McNemar's exact test; `right_a` and `right_b` (n,) say which examples each side gets right."""
    from statsmodels.stats.contingency_tables import mcnemar as test

    a_alone, b_alone = int((right_a & ~right_b).sum()), int((~right_a & right_b).sum())
    both, neither = int((right_a & right_b).sum()), int((~right_a & ~right_b).sum())
    p = test([[both, a_alone], [b_alone, neither]], exact=True).pvalue
    return McNemar(a_alone, b_alone, float(p))
