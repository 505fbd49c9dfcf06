"""The quantities that figures show, as plain functions on numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Array = np.ndarray


def effective_rank(singular_values: Array) -> float:
    """exp(−Σ pᵢ ln pᵢ) with pᵢ = σᵢ/Σσ: the number of directions as if all were equal; 0 for a zero matrix.

    Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality", EUSIPCO, definition 1.
    """
    s = np.asarray(singular_values, dtype=np.float64)
    s = s[s > 0]
    if not len(s):
        return 0.0
    p = s / s.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def subspace_similarity(a: Array, b: Array) -> Array:
    """φ[i − 1, j − 1] = ‖V_A[:, :i]ᵀ V_B[:, :j]‖² / min(i, j), between 0 and 1.

    a: (r, in), b: (r', in). V_A, V_B: their right singular vectors, largest first; vectors that belong to a
    singular value of zero are arbitrary and left out. Hu et al. 2022, arXiv 2106.09685, section 7.2, equation 4.
    """
    left, right = _right_vectors(a), _right_vectors(b)
    squares = (left @ right.T) ** 2
    i, j = np.arange(1, len(left) + 1)[:, None], np.arange(1, len(right) + 1)[None, :]
    return squares.cumsum(0).cumsum(1) / np.minimum(i, j)


def _right_vectors(a: Array) -> Array:
    """(rank, in): the right singular vectors that are determined by `a`."""
    _, s, vh = np.linalg.svd(np.asarray(a, dtype=np.float64), full_matrices=False)
    if not len(s):
        return vh
    return vh[s > s[0] * max(a.shape) * np.finfo(np.float64).eps]


def jaccard(a: Array, b: Array) -> float:
    """|a ∩ b| / |a ∪ b| of two sets of indices without repetitions; 1 for two empty sets."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    union = len(a) + len(b) - common
    return common / union if union else 1.0


def chance_jaccard(a: int, b: int, size: int) -> float:
    """The approximate Jaccard index of two sets of sizes `a` and `b` drawn independently from `size` indices."""
    common = a * b / size
    union = a + b - common
    return common / union if union else 1.0


def unbeaten(
    costs: Sequence[float],
    means: Sequence[float],
    errors: Sequence[float | None],
    higher_is_better: bool,
    slack: float = 0.0,
) -> list[int]:
    """Indices of the points that none is shown to beat which costs as little, in rising order of cost.

    errors: standard errors of the means; None for a single value, of which nothing is shown. A point beats another
    if it costs at most 1 + `slack` times as much and is better by more than two standard errors of the difference.
    """
    sign = 1 if higher_is_better else -1

    def beats(a: int, b: int) -> bool:
        one, other = errors[a], errors[b]
        if one is None or other is None or costs[a] > costs[b] * (1 + slack):
            return False
        return sign * (means[a] - means[b]) > 2 * float(np.hypot(one, other))

    every = sorted(range(len(costs)), key=lambda k: (costs[k], -sign * means[k]))
    return [b for b in every if not any(beats(a, b) for a in every)]
