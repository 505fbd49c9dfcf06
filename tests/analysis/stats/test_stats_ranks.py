"""Ranks over tasks, with the numbers of Demšar's paper."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.stats import ranks

# Demšar 2006, table 6: ranks of C4.5, C4.5+m, C4.5+cf and C4.5+m+cf on 14 data sets. As values, the
# lower rank is the higher.
TABLE_6 = -np.array(
    [
        *([4, 3, 2, 1], [1, 2, 3, 4], [4, 1, 2, 3], [4, 1, 3, 2], [4, 2, 3, 1], [1, 2.5, 4, 2.5], [3, 2, 4, 1]),
        *([2.5, 2.5, 4, 1], [4, 3, 2, 1], [2.5] * 4, [4, 2.5, 1, 2.5], [3, 2, 4, 1], [4, 1, 2, 3], [3, 1, 4, 2]),
    ]
)


def test_demsars_average_ranks():
    assert ranks.average(TABLE_6).round(3) == pytest.approx([3.143, 2.0, 2.893, 1.964])


def test_demsars_friedman_statistic():
    found = ranks.friedman(TABLE_6)
    # His 9.28 is without the correction for ties, which divides by 1 − Σ(t³ − t) / (N k (k² − 1)).
    ties = 1 - (3 * (2**3 - 2) + (4**3 - 4)) / (14 * 4 * (4**2 - 1))
    assert found.chi2 == pytest.approx(9.28 / ties, abs=0.01)
    assert found.p is not None and found.p < 0.05 and found.rejects


def test_friedman_without_ties_by_the_closed_form():
    values = np.array([[3, 2, 1], [3, 1, 2], [3, 2, 1], [2, 3, 1], [3, 2, 1]])
    rank_sums = np.array([6, 10, 14])
    chi2 = 12 / (5 * 3 * 4) * (rank_sums**2).sum() - 3 * 5 * 4
    assert ranks.friedman(values).chi2 == pytest.approx(chi2)


def test_demsars_critical_difference():
    assert ranks.critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)


@pytest.mark.parametrize(
    "methods, quantile",
    [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (7, 2.949), (8, 3.031), (9, 3.102), (10, 3.164)],
)
def test_demsars_table_of_nemenyis_quantiles(methods, quantile):
    scale = np.sqrt(methods * (methods + 1) / (6 * 20))
    assert ranks.critical_difference(methods, 20) / scale == pytest.approx(quantile, abs=0.001)


def test_demsar_finds_nothing_by_nemenyis_test():
    # "The difference between the best and the worst is already smaller than that": 1.179 < 1.25.
    found = ranks.nemenyi(TABLE_6)
    assert found[~np.eye(4, dtype=bool)].min() > 0.05
    # z = 1.179 / √(4 · 5 / (6 · 14)) = 2.416, between the quantiles of .10 (2.291) and .05 (2.569).
    assert 0.05 < found[0, 3] < 0.10
    assert found == pytest.approx(found.T)


def test_nemenyi_and_the_critical_difference_say_the_same():
    values = np.random.default_rng(0).normal(size=(12, 6)) + np.linspace(2, 0, 6)
    average, p = ranks.average(values), ranks.nemenyi(values)
    apart = np.abs(average[:, None] - average) > ranks.critical_difference(6, 12)
    assert (apart == (p < 0.05)).all() and apart.any() and not apart.all()


def test_one_big_tie():
    found = ranks.friedman(np.ones((5, 3)))
    assert (found.chi2, found.p, found.rejects) == (None, None, False)
    assert list(ranks.average(np.ones((5, 3)))) == [2, 2, 2]
