"""The overlap of allocations of ranks, and what chance gives."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from analysis.stats import agreement

A = np.array([[4.0, 1, 1, 2]])
B = np.array([[3.0, 2, 1, 2]])


def test_the_overlap_is_what_two_allocations_have_in_common():
    assert agreement.overlaps(A, B) == pytest.approx(2 * (3 + 1 + 1 + 2) / (8 + 8))
    assert agreement.overlaps(A, A) == 1
    assert agreement.overlaps(np.array([[1.0, 0]]), np.array([[0.0, 5]])) == 0
    assert agreement.overlaps(np.zeros((1, 2)), np.zeros((1, 2))) == 1


def test_chance_is_the_mean_over_all_orders():
    orders = [agreement.overlaps(A, B[:, list(order)]).item() for order in permutations(range(4))]
    assert agreement.chance_overlaps(A, B, [np.arange(4)]).item() == pytest.approx(np.mean(orders))


def test_in_place_is_the_mean_over_orders_within_modules():
    groups = [np.array([0, 2]), np.array([1, 3])]
    orders = [(0, 1, 2, 3), (2, 1, 0, 3), (0, 3, 2, 1), (2, 3, 0, 1)]
    means = np.mean([agreement.overlaps(A, B[:, list(order)]).item() for order in orders])
    assert agreement.chance_overlaps(A, B, groups).item() == pytest.approx(means)


def test_runs_that_agree_are_told_from_runs_in_any_order():
    rng = np.random.default_rng(0)
    ranks = np.arange(1.0, 25)
    alike = [ranks[None] + rng.integers(0, 2, (1, 24)) for _ in range(3)]
    mixed = [rng.permutation(ranks)[None] for _ in range(3)]
    modules = [layer % 6 for layer in range(24)]
    same, other = agreement.between(alike, modules), agreement.between(mixed, modules)
    assert same.pairs == other.pairs == 3
    assert same.overlap > 0.95 and same.beyond > 0.8 and same.p == 1 / (1 + agreement.SHUFFLES)
    assert abs(other.overlap - other.chance) < 0.1 and other.p > 0.05


def test_a_module_that_all_runs_prefer_is_chance_in_place():
    preferred = np.tile([8.0, 1, 1, 1], 3)  # module 0 in each of three blocks
    found = agreement.between([preferred[None], preferred[None]], [0, 1, 2, 3] * 3)
    assert found.overlap == found.in_place == 1 and found.chance < 0.7


def test_runs_of_one_task_are_shuffled_together():
    """Ten equal runs of a task are no ten witnesses: p is that of one pair of tasks."""
    one, other = np.array([[3.0, 1, 1]]), np.array([[3.0, 1, 1]])
    many = agreement.between([np.repeat(one, 10, 0), np.repeat(other, 10, 0)], [0, 1, 2])
    assert many.pairs == 100 and many.p == pytest.approx(1 / 3, abs=0.05)
