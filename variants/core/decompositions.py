"""A weight W (out, in) as a sum of r directions, W ≈ U diag(s) Vh, and adapters that move in that basis.

| method | factors | r | random |
|---|---|---|---|
| `svd` | the leading singular triplets, exact | any rule | no |
| `randomized_svd` | the same, approached from a random subspace (Halko et al. 2011, arXiv 0909.4061) | any rule | yes |
| `als` | alternating least squares on W ≈ X Yᵀ, then the singular triplets of X Yᵀ | any rule | yes |
| `nmf` | columns of U and rows of Vh each of one sign, s ≥ 0; not orthogonal | a number | start only |

`nmf`: W has both signs and no non-negative factorisation. Its parts W⁺ = max(W, 0) and W⁻ = max(−W, 0)
are factorised apart, with shares of r that follow their energies, and W ≈ W⁺ − W⁻ is put together again:
U and s are non-negative, a row of Vh that came from W⁻ is negative.

A rule for r is a whole number; a share of the energy ‖W‖² as a fraction below 1 (the smallest r that
reaches it); "gavish_donoho"; or null for all, which only `svd` can afford. The rules other than a number
look at all singular values and choose at least one.

Columns of U have length 1 in every method, and rows of Vh. Signs are free in an SVD; here the largest
entry of each column of U is positive, so that a basis found again is the same basis.

scipy and scikit-learn are imported by the rules and methods that need them: they take two seconds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from variants.core import field_checks, layers
from variants.core.adapters.adapter import Factored, check_rank
from variants.core.allocation.budget import spread_priced
from variants.core.kernels.basis import basis_linear, pays
from variants.core.state_files import CorruptState
from variants.core.variant import AdapterVariant

GAVISH_DONOHO = "gavish_donoho"
ITERATIONS = {"svd": None, "randomized_svd": 10, "als": 50, "nmf": 200}  # None: there is nothing to iterate
Rule = int | float | str | None


@dataclass(frozen=True)
class Factors:
    """W ≈ U diag(s) Vh. U: (out, r). s: (r,), falling. Vh: (r, in).

    relative_error: ‖W − U diag(s) Vh‖ / ‖W‖, Frobenius. explained: share of ‖W‖², 1 − relative_error².
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
    """Decomposes `weight` (out, in), in float32 or in its own precision where that is higher.

    iterations: power iterations, sweeps or updates; None for the method's own number in `ITERATIONS`.
    seed: of the method's own random draws; torch's generator is not touched.
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
    """Raises `ValueError` naming what `decompose` would refuse whatever the weight."""
    if method not in ITERATIONS:
        raise ValueError(f"decomposition: {method!r}, allowed: {', '.join(ITERATIONS)}")
    number = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
    share = isinstance(rank, float) and 0 < rank < 1
    if not (number or share or rank is None or rank == GAVISH_DONOHO):
        allowed = f"a whole number ≥ 1, a share of the energy between 0 and 1, {GAVISH_DONOHO}, null"
        raise ValueError(f"rank: {rank!r}, allowed: {allowed}")
    if method == "nmf" and not number:
        shown = "null" if rank is None else rank
        raise ValueError(f"rank: {shown}, allowed with decomposition=nmf: a whole number ≥ 1")
    if rank is None and method != "svd":
        raise ValueError(f"rank: null, allowed with decomposition={method}: a number or a rule; null is for svd")
    if iterations is not None:
        if method == "svd":
            raise ValueError(f"iterations: {iterations!r}, allowed with decomposition=svd: null; it has none")
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
            raise ValueError(f"iterations: {iterations!r}, allowed: a whole number ≥ 1, null")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed: {seed!r}, allowed: a whole number from 0 to 2³² − 1")


def choose_rank(singular_values: torch.Tensor, shape: Sequence[int], rule: Rule) -> int:
    """The rank by a rule (see the module's text). singular_values: all of them, falling."""
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
    """ω(β): singular values above ω(β) times their median are kept; beta is the matrix's short side over its long.

    Gavish and Donoho 2014, "The Optimal Hard Threshold for Singular Values is 4/√3", arXiv 1305.5870:
    optimal for a low-rank matrix in white noise of unknown level. ω(β) = λ*(β) / √μ(β), where μ is the
    median of the Marchenko-Pastur law, found here by integration and not by their cubic fit.
    """
    from scipy.integrate import quad
    from scipy.optimize import brentq

    optimal = math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta**2 + 14 * beta + 1)))
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2

    def below(angle: float) -> float:
        # t = low + (high − low) sin²(angle) takes the roots, and the pole at β = 1, out of the density.
        def density(a: float) -> float:
            sin, cos = math.sin(a), math.cos(a)
            return (high - low) ** 2 * sin**2 * cos**2 / (math.pi * beta * (low + (high - low) * sin**2))

        return quad(density, 1e-12, angle)[0]

    median = low + (high - low) * math.sin(brentq(lambda a: below(a) - 0.5, 1e-6, math.pi / 2)) ** 2
    return optimal / math.sqrt(median)


Triplets = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _randomized(w: torch.Tensor, r: int, iterations: int, seed: int) -> Triplets:
    from sklearn.utils.extmath import randomized_svd

    found = randomized_svd(w.cpu().numpy(), r, n_iter=iterations, random_state=seed)
    u, s, vh = (torch.from_numpy(np.ascontiguousarray(part)).to(w) for part in found)
    return u, s, vh


def _als(w: torch.Tensor, r: int, sweeps: int, seed: int) -> Triplets:
    generator = torch.Generator().manual_seed(seed)
    y = torch.linalg.qr(torch.randn(w.shape[1], r, generator=generator, dtype=w.dtype).to(w.device)).Q
    for _ in range(sweeps):
        # With orthonormal columns in the factor that is held, W times it is the least-squares solution.
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
    for (sign, part), share in zip(parts, (positive, r - positive), strict=True):
        if not share:
            continue
        model = NMF(share, init="nndsvda", max_iter=iterations, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the error is reported with the factors
            left = model.fit_transform(part.cpu().numpy())
        columns.append(torch.from_numpy(left).to(w))
        rows.append(torch.from_numpy(model.components_).to(w) * sign)
    u, vh = torch.cat(columns, 1), torch.cat(rows, 0)
    lengths = (torch.linalg.vector_norm(u, dim=0), torch.linalg.vector_norm(vh, dim=1))
    s = lengths[0] * lengths[1]
    # A component that came out empty is no direction; the rank is then lower than asked for.
    order = torch.argsort(s, descending=True, stable=True)[: int(torch.count_nonzero(s))]
    return (u / lengths[0])[:, order], s[order], (vh / lengths[1][:, None])[order]


class InBasis(Factored):
    """ΔW = U C Vh in a frozen basis U (out, r), Vh (r, in); C is small and trained: `core`.

    x ──┬── W (frozen) ──────── y
        └── Vh ── C ── U ───────┘

    The basis is no part of a checkpoint: it is up to twice as large as W and comes out of W again, with the
    same bits on the same machine. On another one it may be off by rounding; `BasisVariant` checks that it is
    not off by more.
    """

    U: torch.Tensor
    Vh: torch.Tensor
    scale = 1.0
    counts_rank_on_device = True

    def __init__(self, base: nn.Module, factors: Factors) -> None:
        super().__init__(base)
        self.register_buffer("U", factors.U, persistent=False)
        self.register_buffer("Vh", factors.Vh, persistent=False)
        self.relative_error, self.explained = factors.relative_error, factors.explained

    def core(self) -> torch.Tensor:
        """C as it acts now: (r, r), or (r,) for a diagonal one."""
        raise NotImplementedError(f"{type(self).__name__}.core")

    def factors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.Vh, self.U, self.core()

    def product(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        one = x.dtype == weight.dtype == self.U.dtype and not torch.is_autocast_enabled(x.device.type)
        tokens = x.numel() // self.in_features
        core = self.core()
        if self.dropout or not one or not pays(tokens, self.out_features, self.in_features, core):
            return super().product(x, weight)
        return basis_linear(x, weight, self.form.layer.bias, self.U, self.Vh, core, self.scale, self.kernel)

    @torch.no_grad()
    def rank_source(self) -> torch.Tensor | None:
        return self.core()

    def rank_from(self, source: np.ndarray) -> int:
        """For a diagonal C: the directions that it moves; before the first step it moves none, and all count."""
        return int(np.count_nonzero(source)) or len(source)

    def closed_form(self) -> int:
        return self.U.shape[1]

    @torch.no_grad()
    def fingerprint(self) -> torch.Tensor:
        """Two numbers (2,) in float64 that follow every direction of the basis, signs included."""
        u, vh = self.U.double(), self.Vh.double()
        left, right = probe(len(u), u.device) @ u, vh @ probe(vh.shape[1], u.device)
        # Weighted, so that directions that changed places are seen too; by their size, not to depend on it.
        weights = probe(len(left), u.device)
        return torch.stack([(weights * h).sum() / torch.linalg.vector_norm(h) for h in (left, right)]).cpu()

    def extra_repr(self) -> str:
        return f"directions={self.U.shape[1]}, explained={self.explained:.3f}"


def probe(n: int, device: torch.device) -> torch.Tensor:
    """n fixed numbers between −1 and 1 without a pattern that a weight could share."""
    return torch.cos(torch.arange(1, n + 1, dtype=torch.float64, device=device) ** 2)


@dataclass(kw_only=True)
class BasisVariant(AdapterVariant):
    """A method that decomposes each target's weight, freezes the factors and trains in their basis.

    rank: directions of each layer, a rule (see the module's text). decomposition: the method.
    iterations: of the decomposition; null for its own number. seed: of all random draws that the basis needs.
    budget: replaces `rank` where the method says how many parameters a number of directions has.
    """

    rank: Rule = None
    decomposition: str = "svd"
    iterations: int | None = None
    seed: int = 0
    budget: int | None = None

    adapters: dict[str, InBasis] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.budget(self, "rank")
        # A budget decides on numbers of directions, which every decomposition takes.
        check_rule(self.decomposition, self.rank if self.budget is None else 1, self.iterations, self.seed)
        if not self.draws:
            field_checks.without_effect(self, "seed", f"decomposition: {self.decomposition}")
        self._fingerprints: dict[str, torch.Tensor] = {}
        self._rules: dict[str, Rule] = {}  # of the layers, by name

    @property
    def draws(self) -> bool:
        """Whether anything is drawn with `seed`."""
        return self.decomposition != "svd"

    def parameters(self, directions: int) -> int:
        """Trained parameters of a layer with that many directions."""
        return directions

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        found = self.select(model, head)
        self._rules = dict.fromkeys(found, self.rank)
        if self.budget is not None:
            self._rules |= self.choose({name: min(layers.size(layer)) for name, layer in found.items()}, self.budget)
        for name, layer in found.items():
            rule = self._rules[name]
            if isinstance(rule, int):
                check_rank(rule, layer)

    def choose(self, most: Mapping[str, int], parameters: int) -> Mapping[str, Rule]:
        """Directions by layer for a budget of `parameters`. most: the directions that a layer has."""
        return spread_priced(lambda name, directions: self.parameters(directions), parameters, most)

    def attach(self, model: nn.Module, head: Sequence[str] = ()) -> nn.Module:
        self.check(model, head)
        self._fingerprints = {}
        return super().attach(model, head)

    def factors(self, name: str, layer: nn.Module) -> Factors:
        """The basis of the layer `name`."""
        rule = self._rules[name]
        return decompose(layers.matrix(layer), self.decomposition, rule, iterations=self.iterations, seed=self.seed)

    def decompositions(self) -> dict[str, dict[str, float]]:
        """Of every layer: directions, relative error and explained energy of its decomposition."""
        return {
            name: {
                "directions": adapter.U.shape[1],
                "relative_error": adapter.relative_error,
                "explained": adapter.explained,
            }
            for name, adapter in self.adapters.items()
        }

    def report(self) -> dict[str, float]:
        """How well the bases carry the weights: mean directions, energy, mean and largest relative error."""
        found = self.decompositions().values()
        errors = [layer["relative_error"] for layer in found]
        energy = sum(float(adapter.form.matrix.square().sum()) for adapter in self.adapters.values())
        kept = sum(a.explained * float(a.form.matrix.square().sum()) for a in self.adapters.values())
        return {
            "decomposition.directions": sum(layer["directions"] for layer in found) / len(errors),
            "decomposition.explained": kept / energy,
            "decomposition.relative_error": sum(errors) / len(errors),
            "decomposition.largest_error": max(errors),
        }

    def state_dict(self) -> dict[str, Any]:
        if not self._fingerprints:  # found once: the basis never changes, and states are saved often
            self._fingerprints = {name: adapter.fingerprint() for name, adapter in self.adapters.items()}
        return {"basis": self._fingerprints}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # What was trained means nothing in another basis, and nothing else would tell.
        for name, found in self.state_dict()["basis"].items():
            saved = state["basis"].get(name)
            if saved is None:
                raise CorruptState(f"{name}: the state was trained without this layer")
            if not torch.allclose(saved, found, rtol=0, atol=1e-3):
                raise CorruptState(
                    f"{name}: its basis is not the one trained in (fingerprint {found.tolist()}, saved "
                    f"{saved.tolist()}); the base weight, `rank`, `decomposition` or `seed` differ"
                )
