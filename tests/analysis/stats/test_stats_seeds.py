"""Two methods over the same seeds: known answers, and what an interval of 95 % really covers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from analysis.stats import seeds

# Student 1908: hours of sleep gained by ten patients with two drugs; as R's help page of t.test has it.
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_students_sleep():
    found = seeds.over_seeds(DRUG_2, DRUG_1)
    assert (found.n, found.difference) == (10, pytest.approx(1.58))
    assert found.sd == pytest.approx(1.23, abs=0.005)
    assert found.p == pytest.approx(0.002833, abs=1e-6)
    assert (found.low, found.high) == (pytest.approx(0.7001142), pytest.approx(2.4598858))


SIMULATIONS = 20_000


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_covers_the_truth_95_times_in_100(n):
    rng = np.random.default_rng(n)
    shared = rng.normal(size=(SIMULATIONS, n))  # what a seed does to both sides alike
    a = 0.8 + 0.03 * shared + rng.normal(scale=0.01, size=shared.shape)
    b = 0.7 + 0.03 * shared + rng.normal(scale=0.02, size=shared.shape)
    found = seeds.paired_t(a, b)
    covered = np.mean((found.low <= 0.1) & (found.high >= 0.1))
    assert 0.93 <= covered <= 0.97
    # What covers is what one comparison reports.
    one = seeds.over_seeds(a[7], b[7])
    assert (one.low, one.high, one.p, one.difference, one.sd) == pytest.approx(
        [float(getattr(found, name)[7]) for name in ("low", "high", "p", "mean", "sd")]
    )


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_covers_for_accuracies_too(n):
    rng = np.random.default_rng(n)
    hardness = rng.normal(scale=0.02, size=(SIMULATIONS, n))
    a, b = (rng.binomial(500, center + hardness) / 500 for center in (0.8, 0.77))
    found = seeds.paired_t(a, b)
    assert 0.93 <= np.mean((found.low <= 0.03) & (found.high >= 0.03)) <= 0.97


@pytest.mark.parametrize("n", [3, 5, 10])
def test_without_a_difference_one_test_in_twenty_claims_one(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=(2, SIMULATIONS, n))
    assert 0.04 <= np.mean(seeds.paired_t(a, b).p < 0.05) <= 0.06


@pytest.mark.parametrize("n", range(2, 8))
def test_the_sign_flip_p_is_that_of_all_flips_counted_by_hand(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.5, size=n), rng.normal(size=n)
    difference = a - b
    observed = abs(difference.mean())
    flips = [abs((difference * flip).mean()) for flip in itertools.product((1, -1), repeat=n)]
    counted = sum(flip >= observed - 1e-12 for flip in flips) / 2**n
    assert seeds.sign_flip(a, b) == pytest.approx(counted)


@pytest.mark.parametrize("n, floor", [(2, 0.5), (3, 0.25), (4, 0.125), (5, 0.0625), (6, 0.03125), (10, 0.001953125)])
def test_the_floor_is_what_the_clearest_difference_reaches(n, floor):
    a, b = np.linspace(0.8, 0.9, n), np.linspace(0.1, 0.3, n)
    found = seeds.over_seeds(a, b)
    assert found.flip_floor == floor
    assert found.p_flip == pytest.approx(floor)


@pytest.mark.parametrize("n", [14, 15, 20])
def test_the_floor_of_many_seeds_is_that_of_the_flips_that_are_drawn(n):
    found = seeds.over_seeds(np.linspace(0.8, 0.9, n), np.linspace(0.1, 0.3, n))
    assert found.p_flip == pytest.approx(found.flip_floor)
    assert found.flip_floor == (2 / 2**14 if n == 14 else 2 / 16385)


def test_with_many_seeds_flips_are_drawn_and_always_the_same():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.4, size=20), rng.normal(size=20)
    first = seeds.sign_flip(a, b)
    assert first == seeds.sign_flip(a, b)
    assert first == pytest.approx(float(seeds.paired_t(a, b).p), abs=0.02)


@pytest.mark.parametrize("n, correction", [(3, 1 / math.sqrt(math.pi)), (5, math.sqrt(2 / math.pi)), (10, 0.9139)])
def test_the_effect_size_is_mean_over_sd_with_hedges_exact_correction(n, correction):
    assert seeds.effect_size(3.0, 2.0, n) == pytest.approx(1.5 * correction, abs=1e-4)


@pytest.mark.parametrize("n", [4, 10])
def test_the_effect_size_is_right_on_average(n):
    values = np.random.default_rng(n).normal(0.8, 1.0, size=(SIMULATIONS, n))
    effects = [
        seeds.effect_size(*pair, n) for pair in zip(values.mean(axis=1), values.std(axis=1, ddof=1), strict=True)
    ]
    assert np.mean(effects) == pytest.approx(0.8, abs=0.02)


def test_the_other_way_round_everything_changes_its_sign():
    one, other = seeds.over_seeds(DRUG_2, DRUG_1), seeds.over_seeds(DRUG_1, DRUG_2)
    assert one.effect is not None and one.low is not None and one.high is not None
    assert (other.difference, other.low, other.high) == pytest.approx((-one.difference, -one.high, -one.low))
    assert other.effect == pytest.approx(-one.effect)
    assert (other.p, other.p_flip, other.sd) == (pytest.approx(one.p), pytest.approx(one.p_flip), one.sd)


def test_one_seed_has_a_difference_and_nothing_else():
    found = seeds.over_seeds([0.8], [0.5])
    assert (found.n, found.mean_a, found.mean_b, found.difference) == (1, 0.8, 0.5, pytest.approx(0.3))
    rest = (found.sd, found.low, found.high, found.p, found.p_flip, found.flip_floor, found.effect)
    assert rest == (None,) * 7


def test_equal_runs_differ_by_exactly_nothing():
    found = seeds.over_seeds([0.1, 0.7, 0.2], [0.1, 0.7, 0.2])
    assert (found.difference, found.sd, found.p_flip) == (0.0, 0.0, 1.0)
    assert (found.low, found.high, found.p, found.effect) == (None,) * 4


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_difference_without_a_spread_is_no_certainty(n):
    # 0.8 − 0.7 and 0.3 − 0.2 are not the same double: rounding is no spread.
    a = [0.8, 0.3, 0.9, 0.4, 0.6][:n]
    found = seeds.over_seeds(a, [value - 0.1 for value in a])
    assert found.difference == pytest.approx(0.1) and found.sd == 0
    assert (found.low, found.high, found.p, found.effect) == (None,) * 4
    assert found.p_flip == pytest.approx(seeds.flip_floor(n))


def test_two_seeds_have_an_interval_but_no_effect_size():
    found = seeds.over_seeds([0.8, 0.9], [0.7, 0.85])
    assert found.effect is None and found.high is not None
    assert found.high - found.difference == pytest.approx(12.7062 * found.sd / math.sqrt(2), rel=1e-4)


@pytest.mark.parametrize("tests", [1, 4])
def test_what_could_have_been_shown_is_where_the_first_test_of_holm_turns(tests):
    spread = np.array([0.0, 0.02, -0.01, 0.01, -0.02])
    smallest = seeds.smallest_shown(float(spread.std(ddof=1)), len(spread), tests)
    assert smallest is not None
    less, more = (seeds.over_seeds(list(0.5 + factor * smallest + spread), [0.5] * 5) for factor in (0.999, 1.001))
    assert less.p is not None and more.p is not None
    assert less.p * tests > 0.05 > more.p * tests


def test_nothing_is_said_of_what_could_have_been_shown_without_a_spread():
    assert seeds.smallest_shown(0.0, 5, 1) is None
