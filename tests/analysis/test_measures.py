"""The quantities that figures show, against answers that are known."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.stats.matrices import chance_jaccard, effective_rank, jaccard, pareto_front, subspace_similarity


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


def test_the_front_holds_what_nothing_beats():
    #         cheap and bad, better, dearer and worse, dearest and best
    costs, values = [1, 2, 3, 4], [0.5, 0.8, 0.7, 0.9]
    assert pareto_front(costs, values, higher_is_better=True) == [0, 1, 3]
    assert pareto_front(costs, [-v for v in values], higher_is_better=False) == [0, 1, 3]


def test_the_front_goes_by_cost_whatever_the_order_of_points():
    assert pareto_front([4, 1, 2], [0.9, 0.5, 0.8], higher_is_better=True) == [1, 2, 0]


def test_of_one_cost_only_the_best_is_on_the_front_and_equal_points_are_there_together():
    assert pareto_front([1, 1, 1], [0.5, 0.8, 0.8], higher_is_better=True) == [1, 2]


def test_dearer_and_just_as_good_is_not_on_the_front():
    assert pareto_front([1, 2], [0.8, 0.8], higher_is_better=True) == [0]


def test_every_point_off_the_front_is_beaten_by_one_on_it():
    draw = np.random.default_rng(3)
    costs, values = draw.integers(0, 20, 80).tolist(), draw.integers(0, 20, 80).tolist()
    front = pareto_front(costs, values, higher_is_better=True)

    def beats(k: int, other: int) -> bool:
        as_good = costs[k] <= costs[other] and values[k] >= values[other]
        return as_good and (costs[k], values[k]) != (costs[other], values[other])

    for k in range(80):
        assert (k in front) == (not any(beats(other, k) for other in range(80)))
