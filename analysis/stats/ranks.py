"""Many methods over tasks: ranks, because values on different tasks have no common unit.

    Demšar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 2006
    Friedman, "The Use of Ranks to Avoid the Assumption of Normality", JASA 1937
    Nemenyi, "Distribution-free Multiple Comparisons", thesis, Princeton 1963

Tasks are the sample here: with two or three of them no test of ranks says anything, and
`FEWEST_TASKS` and `FEWEST_METHODS` are the least that one is made for. Friedman's statistic is
corrected for ties, as scipy has it. Nemenyi's test comes after a Friedman test that rejects, and
not otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.stats import ALPHA

FEWEST_TASKS = 5
FEWEST_METHODS = 3


@dataclass(frozen=True)
class Friedman:
    """Tests whether all methods rank alike over tasks. chi2 and p are None if all methods tie on every task."""

    chi2: float | None
    p: float | None

    @property
    def rejects(self) -> bool:
        """Whether some methods rank differently, at level ALPHA."""
        return self.p is not None and self.p < ALPHA


def average(values: np.ndarray) -> np.ndarray:
    """The average rank (k,) of k methods, 1 the best; `values` (tasks, k), higher is better."""
    return np.asarray(stats.rankdata(-values, axis=1).mean(axis=0))


def friedman(values: np.ndarray) -> Friedman:
    """Friedman's test of `values` (tasks, k), k ≥ 3."""
    if (np.ptp(values, axis=1) == 0).all():
        return Friedman(None, None)
    test = stats.friedmanchisquare(*values.T)
    return Friedman(float(test.statistic), float(test.pvalue))


def nemenyi(values: np.ndarray) -> np.ndarray:
    """The p (k, k) of Nemenyi's test of each two methods, 1 on the diagonal."""
    from scikit_posthocs import posthoc_nemenyi_friedman

    return np.asarray(posthoc_nemenyi_friedman(np.asarray(values)))


def critical_difference(methods: int, tasks: int) -> float:
    """The smallest difference of average ranks that Nemenyi's test rejects at level ALPHA."""
    quantile = stats.studentized_range.ppf(1 - ALPHA, methods, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(methods * (methods + 1) / (6 * tasks)))
