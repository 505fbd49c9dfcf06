"""A weight W (out, in) as a sum of r directions, W ≈ U diag(s) Vh.

| method | factors | r | random |
|---|---|---|---|
| `svd` | the leading singular triplets, exact | any rule | no |
| `randomized_svd` | the same, approached from a random subspace (Halko et al. 2011, arXiv 0909.4061) | any rule | yes |
| `als` | alternating least squares on W ≈ X Yᵀ, then the singular triplets of X Yᵀ | any rule | yes |
| `nmf` | columns of U and rows of Vh each of one sign, s ≥ 0; not orthogonal | a number | start only |

`nmf`: W has both signs and no non-negative factorisation. Its parts W⁺ = max(W, 0) and W⁻ = max(−W, 0)
are factorised separately, with parts of r in proportion to their energies, and combined to W ≈ W⁺ − W⁻:
U and s are non-negative, rows of Vh that come from W⁻ are negative.

A rule for r is an integer; a fraction below 1 of the energy ‖W‖² (the smallest r that reaches it);
"gavish_donoho"; or null for all directions, for `svd` only. Rules other than an integer use all singular values
and choose at least one.

Columns of U and rows of Vh have length 1 in every method. The signs of an SVD are arbitrary; here the largest
entry of each column of U is positive, so that decomposing again gives the same basis.

scipy and scikit-learn are imported only by the rules and methods that need them, because that takes two seconds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

GAVISH_DONOHO = "gavish_donoho"
ITERATIONS = {"svd": None, "randomized_svd": 10, "als": 50, "nmf": 200}  # None: not iterative
Rule = int | float | str | None


@dataclass(frozen=True)
class Factors:
    """W ≈ U diag(s) Vh. U: (out, r). s: (r,), descending. Vh: (r, in).

    relative_error: ‖W − U diag(s) Vh‖ / ‖W‖, Frobenius. explained: fraction of ‖W‖², 1 − relative_error².
    """

    U: torch.Tensor
    s: torch.Tensor
    Vh: torch.Tensor
    relative_error: float
    explained: float


@torch.no_grad()
def decompose(
    weight: torch.Tensor, method: str = "svd", rank: Rule = None, *, iterations: int | None = None, seed: int = 0
) -> Factors:
    """Decompose `weight` (out, in), in float32 or in its own precision if that is higher.

    iterations: power iterations, sweeps or updates; None for the method's default in `ITERATIONS`.
    seed: of the method's random draws, which do not use torch's global generator.
    """
    check_rule(method, rank, iterations, seed)
    if isinstance(rank, int) and rank > min(weight.shape):
        size = f"{weight.shape[0]}×{weight.shape[1]}"
        raise ValueError(f"rank: {rank} for a matrix of size {size}, allowed: 1 … {min(weight.shape)}")
    w = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    size = torch.linalg.vector_norm(w)
    if not torch.isfinite(size) or size == 0:
        what = "only zeros" if size == 0 else "values that are not finite"
        raise ValueError(f"decomposition: a weight {tuple(w.shape)} with {what} has no directions to adapt")
    if method == "svd":
        u, s, vh = torch.linalg.svd(w, full_matrices=False)
        r = choose_rank(s, w.shape, rank)
        u, s, vh = u[:, :r], s[:r], vh[:r]
    else:
        r = rank if isinstance(rank, int) else choose_rank(torch.linalg.svdvals(w), w.shape, rank)
        steps = iterations or ITERATIONS[method]
        assert steps is not None
        u, s, vh = {"randomized_svd": _randomized, "als": _als, "nmf": _nmf}[method](w, r, steps, seed)
    if method != "nmf":
        signs = torch.sign(u.gather(0, u.abs().argmax(0, keepdim=True)))
        u, vh = u * signs, vh * signs.T
    error = float(torch.linalg.vector_norm(w - (u * s) @ vh) / size)
    return Factors(u.contiguous(), s.contiguous(), vh.contiguous(), error, 1 - error**2)


def check_rule(method: str, rank: Rule, iterations: int | None = None, seed: int = 0) -> None:
    """Raise `ValueError` for arguments that `decompose` would refuse for every weight."""
    if method not in ITERATIONS:
        raise ValueError(f"decomposition: {method!r}, allowed: {', '.join(ITERATIONS)}")
    number = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
    fraction = isinstance(rank, float) and 0 < rank < 1
    if not (number or fraction or rank is None or rank == GAVISH_DONOHO):
        allowed = f"a whole number ≥ 1, a fraction of the energy between 0 and 1, {GAVISH_DONOHO}, null"
        raise ValueError(f"rank: {rank!r}, allowed: {allowed}")
    if method == "nmf" and not number:
        shown = "null" if rank is None else rank
        raise ValueError(f"rank: {shown}, allowed with decomposition=nmf: a whole number ≥ 1")
    if rank is None and method != "svd":
        raise ValueError(f"rank: null, allowed with decomposition={method}: a number or a rule; null is for svd")
    if iterations is not None:
        if method == "svd":
            raise ValueError(f"iterations: {iterations!r}, allowed with decomposition=svd: null; it is not iterative")
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
            raise ValueError(f"iterations: {iterations!r}, allowed: a whole number ≥ 1, null")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed: {seed!r}, allowed: a whole number from 0 to 2³² − 1")


def choose_rank(singular_values: torch.Tensor, shape: Sequence[int], rule: Rule) -> int:
    """Return the rank by a rule (see the module's docstring). singular_values: all of them, descending."""
    s = singular_values.double()
    if rule is None:
        return len(s)
    if rule == GAVISH_DONOHO:
        return max(1, int((s > gavish_donoho(min(shape) / max(shape)) * s.median()).sum()))
    if isinstance(rule, float):
        reached = s.square().cumsum(0) / s.square().sum()
        return min(len(s), int((reached < rule).sum()) + 1)
    assert isinstance(rule, int)
    return rule


def gavish_donoho(beta: float) -> float:
    """Return ω(β): singular values above ω(β) times their median are kept. beta: short side over long side.

    Gavish and Donoho 2014, "The Optimal Hard Threshold for Singular Values is 4/√3", arXiv 1305.5870:
    optimal for a low-rank matrix in white noise of unknown level. ω(β) = λ*(β) / √μ(β), where μ is the
    median of the Marchenko-Pastur law, computed here by integration instead of their cubic fit.
    """
    from scipy.integrate import quad
    from scipy.optimize import brentq

    optimal = math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta**2 + 14 * beta + 1)))
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2

    def below(angle: float) -> float:
        # Substituting t = low + (high − low) sin²(angle) removes the roots, and the pole at β = 1, from the density.
        def density(a: float) -> float:
            sin, cos = math.sin(a), math.cos(a)
            return (high - low) ** 2 * sin**2 * cos**2 / (math.pi * beta * (low + (high - low) * sin**2))

        return quad(density, 1e-12, angle)[0]

    median = low + (high - low) * math.sin(brentq(lambda a: below(a) - 0.5, 1e-6, math.pi / 2)) ** 2
    return optimal / math.sqrt(median)


Triplets = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _randomized(w: torch.Tensor, r: int, iterations: int, seed: int) -> Triplets:
    from sklearn.utils.extmath import randomized_svd

    parts = randomized_svd(w.cpu().numpy(), r, n_iter=iterations, random_state=seed)
    u, s, vh = (torch.from_numpy(np.ascontiguousarray(part)).to(w) for part in parts)
    return u, s, vh


def _als(w: torch.Tensor, r: int, sweeps: int, seed: int) -> Triplets:
    generator = torch.Generator().manual_seed(seed)
    y = torch.linalg.qr(torch.randn(w.shape[1], r, generator=generator, dtype=w.dtype).to(w.device)).Q
    for _ in range(sweeps):
        # The fixed factor has orthonormal columns, so W times it is the least-squares solution.
        x = torch.linalg.qr(w @ y).Q
        y = torch.linalg.qr(w.T @ x).Q
    left, s, right = torch.linalg.svd(w @ y, full_matrices=False)
    return left, s, right @ y.T


def _nmf(w: torch.Tensor, r: int, iterations: int, seed: int) -> Triplets:
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    parts = [(sign, (sign * w).clamp(min=0)) for sign in (1.0, -1.0)]
    energies = [float(part.square().sum()) for _, part in parts]
    positive = round(r * energies[0] / sum(energies))
    if r > 1 and all(energies):
        positive = min(max(positive, 1), r - 1)
    columns, rows = [], []
    for (sign, part), count in zip(parts, (positive, r - positive), strict=True):
        if not count:
            continue
        model = NMF(count, init="nndsvda", max_iter=iterations, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the error is part of the result
            left = model.fit_transform(part.cpu().numpy())
        columns.append(torch.from_numpy(left).to(w))
        rows.append(torch.from_numpy(model.components_).to(w) * sign)
    u, vh = torch.cat(columns, 1), torch.cat(rows, 0)
    lengths = (torch.linalg.vector_norm(u, dim=0), torch.linalg.vector_norm(vh, dim=1))
    s = lengths[0] * lengths[1]
    # Empty components are dropped, so the rank may be lower than asked for.
    order = torch.argsort(s, descending=True, stable=True)[: int(torch.count_nonzero(s))]
    return (u / lengths[0])[:, order], s[order], (vh / lengths[1][:, None])[order]
