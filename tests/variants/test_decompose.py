"""Decompositions: factors, errors, rules for the rank, seeds, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from variants.core.decompositions import ITERATIONS, choose_rank, decompose, gavish_donoho

METHODS = list(ITERATIONS)
ITERATIVE = [method for method in METHODS if method != "svd"]


def matrix(*shape: int, seed: int = 0) -> torch.Tensor:
    """Singular values that fall, so that a few directions say much."""
    generator = torch.Generator().manual_seed(seed)
    u, _, vh = torch.linalg.svd(torch.randn(*shape, generator=generator, dtype=torch.float64), full_matrices=False)
    return (u * 0.7 ** torch.arange(min(shape))) @ vh


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (7, 7)])
def test_svd_of_all_directions_is_the_matrix(shape):
    w = matrix(*shape)
    found = decompose(w)
    torch.testing.assert_close((found.U * found.s) @ found.Vh, w, rtol=0, atol=1e-14)
    assert found.s.shape == (min(shape),) and found.relative_error < 1e-14 and found.explained == pytest.approx(1)


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (7, 7)])
@pytest.mark.parametrize("method", ["svd", "randomized_svd", "als"])
def test_the_best_approximation_of_a_rank(method, shape):
    w = matrix(*shape)
    found = decompose(w, method, 3)
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    torch.testing.assert_close((found.U * found.s) @ found.Vh, (u[:, :3] * s[:3]) @ vh[:3], rtol=0, atol=1e-6)
    torch.testing.assert_close(found.s, s[:3], rtol=1e-9, atol=0)
    torch.testing.assert_close(found.U.T @ found.U, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.Vh @ found.Vh.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert found.explained == pytest.approx(float(s[:3].square().sum() / s.square().sum()), rel=1e-9)
    assert found.relative_error == pytest.approx(math.sqrt(1 - found.explained), rel=1e-9)


def test_signs_are_fixed():
    w = matrix(8, 5)
    for method in ("svd", "randomized_svd", "als"):
        found = decompose(w, method, 4)
        largest = found.U.gather(0, found.U.abs().argmax(0, keepdim=True))
        assert (largest > 0).all()
        torch.testing.assert_close(found.U, decompose(w, "svd", 4).U, rtol=0, atol=1e-6)


def test_nmf_factorises_both_signs_and_puts_them_together():
    # Parts without a common entry: W⁺ and W⁻ are then these two products.
    up, down = torch.zeros(8, 5), torch.zeros(8, 5)
    up[:4, :3] = torch.outer(torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 0.5, 2]))
    down[4:, 2:] = torch.outer(torch.tensor([2.0, 1, 1, 3]), torch.tensor([1.0, 3, 1]))
    found = decompose(up - down, "nmf", 2)
    assert found.relative_error < 1e-3
    assert (found.U >= 0).all() and (found.s > 0).all()
    assert {float(row.sign().sum().sign()) for row in found.Vh} == {1.0, -1.0}
    for row in found.Vh:
        assert (row >= 0).all() or (row <= 0).all()


def test_nmf_explains_more_with_more_parts_and_never_more_than_svd():
    w = matrix(12, 8)
    shares = [decompose(w, "nmf", r).explained for r in (1, 2, 4, 8)]
    assert shares == sorted(shares) and shares[0] > 0
    for r, share in zip((1, 2, 4, 8), shares, strict=True):
        found = decompose(w, "nmf", r)
        assert len(found.s) == r and share <= decompose(w, "svd", r).explained
        torch.testing.assert_close(torch.linalg.vector_norm(found.U, dim=0), torch.ones(r, dtype=torch.float64))
        torch.testing.assert_close(torch.linalg.vector_norm(found.Vh, dim=1), torch.ones(r, dtype=torch.float64))


@pytest.mark.parametrize("sign", [1, -1])
def test_nmf_of_one_sign_spends_all_parts_on_it(sign):
    found = decompose(sign * matrix(6, 5).abs(), "nmf", 3)
    assert len(found.s) == 3 and (sign * found.Vh >= 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_decides_and_torchs_generator_is_left_alone(method):
    w = matrix(30, 20)
    before = torch.get_rng_state()
    first = decompose(w, method, 4, seed=3)
    torch.manual_seed(99)
    second = decompose(w, method, 4, seed=3)
    torch.set_rng_state(before)
    third = decompose(w, method, 4, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    for other in (second, third):
        assert all(torch.equal(getattr(first, part), getattr(other, part)) for part in ("U", "s", "Vh"))


def test_more_iterations_come_nearer():
    w = torch.randn(60, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    best = decompose(w, "svd", 5).relative_error
    for method, few, many in (("randomized_svd", 1, 30), ("als", 1, 100), ("nmf", 1, 100)):
        near, far = (decompose(w, method, 5, iterations=n).relative_error for n in (many, few))
        assert best <= near + 1e-12 and near < far, method
    seeds = [decompose(w, "als", 5, iterations=1, seed=seed).relative_error for seed in (0, 1)]
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_precision(method, dtype, expected):
    found = decompose(matrix(6, 5).to(dtype), method, 2)
    assert {found.U.dtype, found.s.dtype, found.Vh.dtype} == {expected}


@pytest.mark.parametrize(("share", "rank"), [(0.6, 1), (0.65, 2), (0.92, 2), (0.93, 3), (0.999, 3)])
def test_rank_by_energy(share, rank):
    w = torch.zeros(4, 3)
    w[:3] = torch.diag(torch.tensor([3.0, 2.0, 1.0]))  # energies 9, 4, 1 of 14
    for method in ("svd", "randomized_svd", "als"):
        found = decompose(w, method, share)
        assert len(found.s) == rank and found.explained >= share


def test_gavish_and_donohos_coefficients():
    # For a square matrix the median is 4 sin²(a), where 2a + sin 2a = π/2.
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        a = (low + high) / 2
        low, high = (a, high) if 2 * a + math.sin(2 * a) < math.pi / 2 else (low, a)
    assert gavish_donoho(1.0) == pytest.approx(4 / math.sqrt(3) / (2 * math.sin(a)), rel=1e-9)
    # The paper's cubic fit, which it gives as right to 0.02.
    for beta in (0.05, 0.1, 0.25, 0.5, 0.75, 1.0):
        fit = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
        assert gavish_donoho(beta) == pytest.approx(fit, abs=0.02)


@pytest.mark.parametrize("shape", [(100, 60), (60, 100), (80, 80)])
def test_rank_by_gavish_and_donoho_finds_what_was_planted(shape):
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(shape, generator=generator)
    left, right = (torch.linalg.qr(torch.randn(n, 5, generator=generator)).Q for n in shape)
    for level in (0.01, 10.0):
        found = decompose(level * (noise + 60 * left @ right.T), "svd", "gavish_donoho")
        assert len(found.s) == 5
    assert choose_rank(torch.linalg.svdvals(noise), shape, "gavish_donoho") == 1, "noise alone: the least there is"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "qr"}, "decomposition: 'qr', allowed: svd, randomized_svd, als, nmf"),
        ({"rank": 0}, "rank: 0, allowed: a whole number ≥ 1, a fraction of the energy"),
        ({"rank": True}, "rank: True, allowed: a whole number ≥ 1"),
        ({"rank": 1.0}, "rank: 1.0, allowed: a whole number ≥ 1"),
        ({"rank": math.nan}, "rank: nan, allowed"),
        ({"rank": "best"}, "rank: 'best', allowed"),
        ({"rank": 6}, "rank: 6 for a matrix of size 8×5, allowed: 1 … 5"),
        ({"rank": 6, "method": "als"}, "rank: 6 for a matrix of size 8×5, allowed: 1 … 5"),
        ({"method": "als"}, "rank: null, allowed with decomposition=als: a number or a rule"),
        ({"method": "nmf", "rank": 0.9}, "rank: 0.9, allowed with decomposition=nmf: a whole number"),
        ({"iterations": 5}, "iterations: 5, allowed with decomposition=svd: null"),
        ({"method": "als", "rank": 2, "iterations": 0}, "iterations: 0, allowed: a whole number ≥ 1"),
        ({"seed": -1}, "seed: -1, allowed: a whole number from 0"),
    ],
)
def test_what_can_not_be_is_refused(settings, message):
    with pytest.raises(ValueError) as caught:
        decompose(matrix(8, 5), **settings)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("value", "what"), [(0.0, "only zeros"), (math.nan, "values that are not finite")])
def test_a_weight_without_directions_is_refused(method, value, what):
    with pytest.raises(ValueError, match=rf"decomposition: a weight \(4, 3\) with {what}"):
        decompose(torch.full((4, 3), value), method, 2)
