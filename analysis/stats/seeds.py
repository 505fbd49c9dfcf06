"""Two methods over the same seeds.

A seed fixes the split, the order of the data and the start of the weights that two runs share, so
they are compared pair by pair; what both owe to the seed drops out of their difference.

The interval is the paired t's. With so few seeds no bootstrap over them will do: for normal
differences a percentile or BCa bootstrap meant as 95 % covers about 75 % at n = 3 and 83 % at
n = 5, the t interval covers 95 %. Its p goes with it, and is what verdicts are made from.

The sign-flip test stands beside it because it needs no normal distribution: if the methods were
exchangeable, each difference would have had either sign with equal odds. All 2ⁿ flips are
counted, so with n seeds its p is never below 2/2ⁿ: n = 6 is the first where it can be below .05.

    Student, "The probable error of a mean", Biometrika 1908
    Fisher, "The Design of Experiments", 1935, §21 (flips of the signs of paired differences)
    Bouthillier et al., "Accounting for Variance in Machine Learning Benchmarks", MLSys 2021
    Hedges, "Distribution Theory for Glass's Estimator of Effect Size", JES 1981 (the correction)
    Lakens, "Calculating and reporting effect sizes", Frontiers in Psychology 2013 (d_z)
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special, stats

from analysis.stats import ALPHA, LEVEL

# Up to this number of seeds all 2ⁿ flips are enumerated; for more, 2 to this power are drawn.
MOST_EXACT = 14
# Differences whose relative variation is below this vary by rounding only.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class OverSeeds:
    """A − B over n paired seeds. With one seed, all but the first four fields are None."""

    n: int
    mean_a: float
    mean_b: float
    difference: float  # mean of the n differences
    sd: float | None  # of the n differences, ddof 1
    low: float | None  # paired-t interval of level LEVEL; None if the sd is 0
    high: float | None
    p: float | None  # paired t, two-sided; None if the sd is 0
    p_flip: float | None  # sign-flip test, two-sided
    flip_floor: float | None  # the smallest p_flip with n seeds
    effect: float | None  # g_z: see `effect_size`


@dataclass(frozen=True)
class PairedT:
    """Arrays of the leading shape of the values."""

    mean: np.ndarray
    sd: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray


def over_seeds(a: Sequence[float], b: Sequence[float]) -> OverSeeds:
    """Compares n ≥ 1 values of A with the values of B for the same seeds, in the same order."""
    n, mean_a, mean_b = len(a), float(statistics.mean(a)), float(statistics.mean(b))
    if n == 1:
        difference = a[0] - b[0]
        same = abs(difference) <= _ROUNDING * max(abs(a[0]), abs(b[0]))
        return OverSeeds(n, mean_a, mean_b, 0.0 if same else difference, *[None] * 7)
    t = paired_t(a, b)
    mean, sd = float(t.mean), float(t.sd)
    return OverSeeds(
        *(n, mean_a, mean_b, mean, sd),
        low=_known(t.low),
        high=_known(t.high),
        p=_known(t.p),
        p_flip=sign_flip(a, b),
        flip_floor=flip_floor(n),
        effect=effect_size(mean, sd, n),
    )


def paired_t(a: Any, b: Any) -> PairedT:
    """The paired t interval and test along the last axis; values of shape (…, n), n ≥ 2.

    Differences that are all the same have an sd of exactly 0. They say nothing about noise:
    interval and p are nan, not a point and 0.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    difference = a - b
    rounding = _ROUNDING * np.maximum(np.abs(a).max(axis=-1), np.abs(b).max(axis=-1))
    constant = np.ptp(difference, axis=-1) <= rounding
    zero = np.abs(difference).max(axis=-1) <= rounding
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # from constant differences
        test = stats.ttest_rel(a, b, axis=-1)
        interval = test.confidence_interval(LEVEL)
    return PairedT(
        mean=np.where(zero, 0.0, difference.mean(axis=-1)),
        sd=np.where(constant, 0.0, difference.std(axis=-1, ddof=1)),
        low=np.where(constant, np.nan, interval.low),
        high=np.where(constant, np.nan, interval.high),
        p=np.where(constant, np.nan, test.pvalue),
    )


def sign_flip(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p of the sign-flip test of the mean difference: exact for up to `MOST_EXACT` seeds.

    With more, 16,384 flips are drawn, always the same ones.
    """

    def mean_difference(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray(np.mean(x - y, axis=axis))

    samples = (np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64))
    test = stats.permutation_test(
        samples,
        mean_difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**MOST_EXACT,
        batch=2**12,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)


def flip_floor(n: int) -> float:
    """The smallest two-sided p of `sign_flip` with n pairs.

    Two of 2ⁿ flips are extreme; of flips that are drawn, as many may be on either side as none, and the observed one
    counts as one of them.
    """
    return 2 / 2**n if n <= MOST_EXACT else 2 / (2**MOST_EXACT + 1)


def smallest_shown(sd: float, n: int, tests: int) -> float | None:
    """The smallest mean difference that n pairs with this sd can distinguish from 0, whatever the other tests give.

    It is half the width of the paired t interval of level 1 − ALPHA / tests: of several tests, Holm's correction asks
    the first for as much and the others for less. Of studies of a true difference of this size, a single test finds it
    in 68 % with two pairs, in 56 % with five, and in fewer with more. None without a spread.
    """
    if n < 2 or sd == 0:
        return None
    return float(stats.t.ppf(1 - ALPHA / (2 * tests), n - 1)) * sd / math.sqrt(n)


def effect_size(mean: float, sd: float, n: int) -> float | None:
    """g_z: mean over sd of the paired differences (Cohen's d_z) times Hedges' correction.

    The correction, exact in n − 1 degrees of freedom, takes out the bias of d_z: it is 0.56 at
    n = 3, 0.80 at n = 5, 0.91 at n = 10. None with two seeds, where it doesn't exist, and without a
    spread.
    """
    if n < 3 or sd == 0:
        return None
    freedom = n - 1
    correction = math.exp(special.gammaln(freedom / 2) - special.gammaln((freedom - 1) / 2)) / math.sqrt(freedom / 2)
    return float(mean / sd * correction)


def _known(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
