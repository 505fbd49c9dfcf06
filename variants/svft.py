"""SVFT: a sparse matrix between the singular vectors of every weight.

    W = U Σ Vᵀ        W' = U (Σ + M) Vᵀ        M: trained where the pattern allows an entry, else zero

    y = W x + U(M(Vᵀx))        plain: M is diagonal, k = n        n = min(in, out), or `rank`
    k = n(2d + 1) − d(d + 1)   banded: d diagonals on each side    random, top_k: as many entries, elsewhere

Paper     Lingam et al. 2024, "SVFT: Parameter-Efficient Fine-Tuning with Singular Vectors", NeurIPS,
          arXiv 2405.19597: section 3; GLUE settings in table 11.
Code      VijayLingam95/SVFT 8303115.
Family    singular basis
Trains    entries of M
Changes   nothing
Checked   released code: test_svd test_every_number_of_the_released_svft
Hooks     none: only M changes in training.
Cost      k parameters for each layer; U and V are stored in addition to W (for a square W twice its memory). In
          training they are applied in place of W, with an n×n product between them unless M is diagonal; with more
          than about 3n tokens per batch (1.5n unless M is diagonal) W' is formed instead
          (`variants.core.kernels.basis`). The decomposition is computed once, by `attach`.

Decay     M's entries and the gate decay, as in the released code, where one group has them all.

Where paper and released code differ, `profile` chooses:

  | | paper (default) | released |
  |---|---|---|
  | initial M | zero: the paper specifies none, and zero starts from the base model | N(0, 2/k) |
  | gate | none | M is multiplied by sigmoid(g), g a trained scalar for each layer, zero at the start |
  | random | k different entries | k pairs drawn with replacement; values at the same entry are summed |
  | top_k | the entries with the strongest alignment of u_i with v_j, either sign | the largest of U V |

  The alignment is defined for square layers only, and `top_k` is refused for others. The released code uses the
  entries of U V (not UᵀV), signed, and for other layers those of the factor that is square.

Differences from both
  In the released code a `rank` below n drops the other directions from W' without a residual, and may fill them
  with random ones. Here the rest of W is not changed; `profile: released` refuses a `rank`.
  The paper has full square U, V and an out×in M; the code has thin U, V and an n×n M, as here.
  The released code replaces W by W' and rebuilds it in every forward pass; here x is multiplied by V and U, and in
  evaluation U M Vᵀ is added. Its gate is always float32; ours has the dtype of M and counts as a parameter.

Known     The released start is not small: with M as above and the gate at one half, a weight changes by several percent
          of its norm before the first step. Learning rates are 1e-2 to 8e-2, far above LoRA's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import structural_rank
from torch import nn

from variants.core import field_checks, layers, seeding
from variants.core.adapters.singular_basis import InBasis, probe
from variants.core.allocation.budget import apportion, spread_priced
from variants.core.basis_variant import BasisVariant
from variants.core.decompositions import Factors, Rule

PATTERNS = ("plain", "banded", "random", "top_k")
PROFILES = ("paper", "released")


class SparseCore(InBasis):
    """C = M: `values` (k,) at `rows`, `columns` (k,), multiplied by the gate if there is one."""

    rows: torch.Tensor
    columns: torch.Tensor

    def __init__(self, base: nn.Module, factors: Factors, index: torch.Tensor, diagonal: bool, gated: bool) -> None:
        super().__init__(base, factors)
        index = index.to(factors.U.device)
        self.register_buffer("rows", index[0], persistent=False)
        self.register_buffer("columns", index[1], persistent=False)
        self.values = nn.Parameter(factors.U.new_zeros(index.shape[1]))
        self.gate = nn.Parameter(factors.U.new_zeros(1)) if gated else None
        self.diagonal = diagonal
        indices = index[0] * self.U.shape[1] + index[1]
        distinct, inverse = torch.unique(indices, return_inverse=True)
        self._entry = inverse.to(indices.device)  # of each value
        self._indices = distinct.cpu().numpy()  # of the entries of M, each once
        self._pattern_rank: int | None = None

    def core(self) -> torch.Tensor:
        values = self._gated_values()
        return values if self.diagonal else self._as_matrix(values)

    def _gated_values(self) -> torch.Tensor:
        """Return the values (k,) multiplied by the gate."""
        return self.values if self.gate is None else self.values * torch.sigmoid(self.gate)

    def _as_matrix(self, values: torch.Tensor) -> torch.Tensor:
        r = self.U.shape[1]
        return values.new_zeros(r, r).index_put((self.rows, self.columns), values, accumulate=True)

    def fingerprint(self) -> torch.Tensor:
        indices = self.rows * self.U.shape[1] + self.columns
        pattern = (probe(len(indices), indices.device) * torch.cos(indices.double() ** 2)).sum() / len(indices) ** 0.5
        return torch.cat([super().fingerprint(), pattern[None].cpu()])

    @torch.no_grad()
    def rank_source(self) -> torch.Tensor:
        """The distinct entries of M: (n,)."""
        values = self._gated_values()
        return values if self.diagonal else values.new_zeros(len(self._indices)).index_add(0, self._entry, values)

    def rank_from(self, source: np.ndarray) -> int:
        """The structural rank of M's non-zero entries; before the first step all are zero, and all count."""
        if self.diagonal:
            return super().rank_from(source)
        nonzero = source != 0
        if np.count_nonzero(nonzero) not in (0, len(nonzero)):
            return self._structural_rank(self._indices[nonzero])
        if self._pattern_rank is None:
            self._pattern_rank = self._structural_rank(self._indices)
        return self._pattern_rank

    def _structural_rank(self, indices: np.ndarray) -> int:
        r = self.U.shape[1]
        return int(structural_rank(csr_matrix((np.ones(len(indices)), (indices // r, indices % r)), shape=(r, r))))

    def closed_form(self) -> int:
        return len(self.values) + (self.gate is not None)


@dataclass(kw_only=True)
class SVFT(BasisVariant):
    """SVFT with one of the paper's four patterns.

    pattern: "plain", "banded", "random" or "top_k". off_diagonals: d; random and top_k have as many entries as
        banded would have.
    profile: "paper" or "released", see the module's docstring.
    rank: directions of M: null for all, a number, a fraction of the energy, or "gavish_donoho".
    decomposition: "svd", "randomized_svd", "als" or "nmf"; iterations: of the decomposition.
    seed: of the decomposition's draws and of the random pattern.
    budget: trained parameters; it decides the directions (plain), each layer's d (banded) or entries (random, top_k).
    """

    name: str = "svft"
    pattern: str = "plain"
    off_diagonals: int = 0
    profile: str = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        field_checks.check_one_of(self, "pattern", PATTERNS)
        field_checks.check_one_of(self, "profile", PROFILES)
        field_checks.check_int(self, "off_diagonals", at_least=0)
        if self.off_diagonals and self.pattern == "plain":
            raise ValueError(f"off_diagonals: {self.off_diagonals}, allowed with pattern=plain: 0; banded has more")
        if self.profile == "released":
            if self.rank is not None:
                raise ValueError(
                    f"rank: {self.rank!r}, allowed with profile=released: null; that code drops the rest of the weight"
                )
            if self.decomposition != "svd":
                raise ValueError(f"decomposition: {self.decomposition!r}, allowed with profile=released: svd")
            if self.budget is not None:
                raise ValueError(f"budget: {self.budget} with profile: released, allowed: null; that code has none")
        if self.pattern != "plain":
            field_checks.check_budget(self, "off_diagonals")
        self._bands: dict[str, int] = {}  # d by layer, if a budget decides it
        self._entries: dict[str, int] = {}  # entries of M by layer, if a budget decides them

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {},
            {"pattern": "banded", "off_diagonals": 2},
            {"pattern": "banded", "off_diagonals": 1, "rank": 4, "decomposition": "randomized_svd"},
            {"pattern": "random", "off_diagonals": 1, "seed": 5},
            {"budget": 30},
            {"budget": 70, "pattern": "banded"},
            {"budget": 77, "pattern": "random"},
        ]

    @property
    def draws(self) -> bool:
        return super().draws or self.pattern == "random"

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        super().check(model, head)
        for layer in self.select(model, head).values():
            out_features, in_features = layers.size(layer)
            if self.pattern == "top_k" and self.profile == "paper" and out_features != in_features:
                size = f"{out_features}×{in_features}"
                raise ValueError(f"pattern: top_k for a layer of size {size}, allowed there: plain, banded, random")
            if self.rank is None or isinstance(self.rank, int):
                entries(self.rank or min(out_features, in_features), self.off_diagonals)

    def choose(self, most: Mapping[str, int], parameters: int) -> Mapping[str, Rule]:
        if self.pattern == "plain":
            return super().choose(most, parameters)
        if self.pattern == "banded":
            widest = {name: n - 1 for name, n in most.items()}
            self._bands = spread_priced(lambda name, d: entries(most[name], d), parameters, widest, least=0)
        else:
            self._entries = apportion(most, parameters, {name: n * n for name, n in most.items()})
        return {}

    def build(self, name: str, layer: nn.Module) -> SparseCore:
        factors = self.factors(name, layer)
        released = self.profile == "released"
        adapter = SparseCore(layer, factors, self._index(name, factors), self.pattern == "plain", gated=released)
        if released:
            nn.init.kaiming_normal_(adapter.values[None, :])
        return adapter

    def _index(self, name: str, factors: Factors) -> torch.Tensor:
        """Return rows and columns (2, k) of the entries of M."""
        n, released = len(factors.s), self.profile == "released"
        d = self._bands.get(name, self.off_diagonals)
        k = self._entries[name] if self._entries else entries(n, d)
        if self.pattern in ("plain", "banded"):
            return torch.ones(n, n, dtype=torch.bool).tril(d).triu(-d).nonzero().T
        if self.pattern == "random":
            generator = seeding.generator(self.seed, name)
            if released:
                return torch.randint(0, n, (2, k), generator=generator)
            chosen = torch.randperm(n * n, generator=generator)[:k].sort().values
            return torch.stack([chosen // n, chosen % n])
        u, vh = factors.U, factors.Vh
        if not released:
            alignment = (u.T @ vh.T).abs()
        elif u.shape == vh.shape:
            alignment = u @ vh.T
        else:
            alignment = u if u.shape[0] == u.shape[1] else vh
        chosen = torch.topk(alignment.flatten(), k).indices
        return torch.stack([chosen // n, chosen % n])


def entries(n: int, off_diagonals: int) -> int:
    """Return the number of entries of an n×n band: k = n(2d + 1) − d(d + 1)."""
    if off_diagonals >= n:
        raise ValueError(f"off_diagonals: {off_diagonals} for {n} directions, allowed: 0 … {n - 1}")
    return n * (2 * off_diagonals + 1) - off_diagonals * (off_diagonals + 1)
