"""The quantities that figures show, against answers that are known."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.stats.matrices import chance_jaccard, effective_rank, jaccard, subspace_similarity, unbeaten


def orthonormal(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(columns, rows)))[0].T


@pytest.mark.parametrize("n", [1, 3, 8])
def test_the_effective_rank_of_equal_singular_values_is_their_number(n):
    assert effective_rank(np.full(n, 2.5)) == pytest.approx(n)


def test_the_effective_rank_is_the_exponential_of_the_entropy():
    # p = 1/2, 1/4, 1/4: entropy 1.5 ln 2.
    assert effective_rank(np.array([2.0, 1.0, 1.0])) == pytest.approx(2**1.5)


def test_the_effective_rank_takes_no_notice_of_zeros_and_of_scale():
    assert effective_rank(np.array([6.0, 3.0, 3.0, 0.0])) == pytest.approx(effective_rank(np.array([2.0, 1.0, 1.0])))


@pytest.mark.parametrize("nothing", [np.zeros(4), np.zeros(0)])
def test_the_effective_rank_of_a_zero_matrix_is_zero(nothing):
    assert effective_rank(nothing) == 0


def test_a_subspace_contains_itself():
    a = np.random.default_rng(0).normal(size=(4, 20))
    phi = subspace_similarity(a, 3 * a)
    assert phi.shape == (4, 4)
    # The first i directions lie in the first j for i ≤ j, and hold them for i ≥ j.
    assert phi == pytest.approx(np.ones((4, 4)))


def test_orthogonal_subspaces_have_nothing_in_common():
    q = orthonormal(6, 20)
    assert subspace_similarity(q[:2], q[2:]) == pytest.approx(np.zeros((2, 4)), abs=1e-12)


def test_an_angle_between_two_lines_gives_its_squared_cosine():
    a, b = np.array([[1.0, 0.0, 0.0]]), np.array([[np.cos(0.3), np.sin(0.3), 0.0]])
    assert subspace_similarity(a, b)[0, 0] == pytest.approx(np.cos(0.3) ** 2)


def test_similarity_follows_the_order_of_singular_values():
    e = np.eye(3)
    # Both span the same plane, the strongest direction of one being the weakest of the other.
    phi = subspace_similarity(np.array([3 * e[0], e[1]]), np.array([e[0], 3 * e[1]]))
    assert phi == pytest.approx(np.array([[0.0, 1.0], [1.0, 1.0]]), abs=1e-12)


def test_similarity_leaves_out_directions_that_are_not_there():
    a = np.vstack([orthonormal(2, 10), np.zeros((1, 10))])
    assert subspace_similarity(a, a).shape == (2, 2)
    assert subspace_similarity(np.zeros((2, 10)), a).size == 0
    assert subspace_similarity(np.zeros((0, 10)), a).size == 0


def test_random_subspaces_are_as_similar_as_chance_says():
    draw = np.random.default_rng(1)
    found = [subspace_similarity(draw.normal(size=(4, 60)), draw.normal(size=(8, 60)))[-1, -1] for _ in range(200)]
    assert np.mean(found) == pytest.approx(8 / 60, rel=0.05)  # max(i, j) / in


@pytest.mark.parametrize(
    "a, b, expected",
    [([1, 2, 3], [2, 3, 4], 0.5), ([1, 2], [1, 2], 1), ([1], [2], 0), ([], [1], 0), ([], [], 1)],
)
def test_jaccard(a, b, expected):
    assert jaccard(np.array(a, dtype=int), np.array(b, dtype=int)) == expected


def test_jaccard_of_random_sets_is_about_what_chance_says():
    draw = np.random.default_rng(2)
    found = [jaccard(*(draw.choice(1000, count, replace=False) for count in (100, 300))) for _ in range(100)]
    assert chance_jaccard(100, 300, 1000) == pytest.approx(30 / 370)
    assert np.mean(found) == pytest.approx(30 / 370, rel=0.05)


def test_a_point_that_costs_as_little_and_is_better_by_two_standard_errors_beats():
    costs, means, errors = [1, 1, 2, 3], [0.5, 0.7, 0.6, 0.9], [0.01] * 4
    assert unbeaten(costs, means, errors, higher_is_better=True) == [1, 3]
    assert unbeaten(costs, [-mean for mean in means], errors, higher_is_better=False) == [1, 3]
    assert unbeaten(costs, means, [0.08] * 4, higher_is_better=True) == [1, 0, 2, 3], "within the noise"


@pytest.mark.parametrize(("cost", "expected"), [(1.009, [1]), (1.011, [0, 1])])
def test_costs_within_the_slack_are_equal(cost, expected):
    assert unbeaten([1, cost], [0.5, 0.7], [0.01, 0.01], True, slack=0.01) == expected


def test_of_a_single_value_nothing_is_shown():
    assert unbeaten([1, 2, 3], [0.9, 0.5, 0.4], [None, 0.01, None], True) == [0, 1, 2]
