"""SVFT: a sparse matrix between the singular vectors of every weight.

    W = U Σ Vᵀ        W' = U (Σ + M) Vᵀ        M: trained where the pattern allows an entry, else zero

    y = W x + U(M(Vᵀx))        plain: M is diagonal, k = n        n = min(in, out), or `rank`
    k = n(2d + 1) − d(d + 1)   banded: d diagonals on each side    random, top_k: as many entries elsewhere

Paper     Lingam et al. 2024, "SVFT: Parameter-Efficient Fine-Tuning with Singular Vectors", NeurIPS,
          arXiv 2405.19597: section 3; GLUE settings in table 11.
Code      VijayLingam95/SVFT 8303115.
Hooks     none: nothing changes in training but M.
Cost      k parameters for each layer; U and V are kept beside W (for a square W twice its memory) and
          applied in each forward pass, with an n×n product between them unless M is diagonal; from about n tokens
          a batch on, W' is formed in their place (`variants.core.kernels.basis`). The decomposition is made once, at
          `attach`.

Decay     M's entries and the gate decay, as in the released code, where one group holds them.

Where paper and released code differ, `profile` chooses:

  | | paper (default) | released |
  |---|---|---|
  | start of M | zero: the paper names none, and this one starts from the base model | N(0, 2/k) |
  | gate | none | M is multiplied by sigmoid(g), g a trained scalar for each layer, zero at the start |
  | random | k different entries | k pairs drawn with replacement; what falls on one entry is summed |
  | top_k | the entries with the strongest alignment of u_i with v_j, either sign | the largest of U V |

  The alignment is defined for square layers only, and `top_k` is refused for others. The released code
  takes entries of U V (not UᵀV), signed, and for other layers those of the factor that is square.

Differences from both
  Released `rank` below n drops the other directions from W' without a residual, and may fill them with
  random ones. Here the rest of W stays as it is; `profile: released` refuses a `rank`.
  The paper writes U, V as full square matrices and M as out×in; thin ones and n×n are what the code has.
  The released code puts W' in W's place and rebuilds it in every forward pass; we add U M Vᵀ to it. Its
  gate is float32 whatever the model is; ours has the dtype of M, and counts with the parameters.

Known     The released start is no small one: with M as above and the gate at one half, a weight moves by
          several percent of its norm before the first step. Learning rates are 1e-2 to 8e-2, far above LoRA's.
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
from variants.core.allocation.budget import share_out, spread_priced
from variants.core.basis_variant import BasisVariant
from variants.core.decompositions import Factors, Rule

PATTERNS = ("plain", "banded", "random", "top_k")
PROFILES = ("paper", "released")


class SparseCore(InBasis):
    """C = M: `values` (k,) at `rows`, `columns` (k,), and the gate in front of it where there is one."""

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
        places = index[0] * self.U.shape[1] + index[1]
        taken, self._entry = (found.to(places.device) for found in torch.unique(places, return_inverse=True))
        self._taken = taken.cpu().numpy()  # the entries of M, each once
        self._pattern: int | None = None  # the rank that they allow

    def core(self) -> torch.Tensor:
        values = self._acting()
        return values if self.diagonal else self._placed(values)

    def _acting(self) -> torch.Tensor:
        """The entries (k,) as they act now, behind the gate."""
        return self.values if self.gate is None else self.values * torch.sigmoid(self.gate)

    def _placed(self, values: torch.Tensor) -> torch.Tensor:
        r = self.U.shape[1]
        return values.new_zeros(r, r).index_put((self.rows, self.columns), values, accumulate=True)

    def fingerprint(self) -> torch.Tensor:
        places = self.rows * self.U.shape[1] + self.columns
        pattern = (probe(len(places), places.device) * torch.cos(places.double() ** 2)).sum() / len(places) ** 0.5
        return torch.cat([super().fingerprint(), pattern[None].cpu()])

    @torch.no_grad()
    def rank_source(self) -> torch.Tensor:
        """The entries of M, each once: (n,)."""
        values = self._acting()
        return values if self.diagonal else values.new_zeros(len(self._taken)).index_add(0, self._entry, values)

    def rank_from(self, source: np.ndarray) -> int:
        """The rank that the zeros of M allow; that of its pattern before the first step, when all are zero."""
        if self.diagonal:
            return super().rank_from(source)
        acting = source != 0
        if np.count_nonzero(acting) not in (0, len(acting)):
            return self._structural(self._taken[acting])
        if self._pattern is None:
            self._pattern = self._structural(self._taken)
        return self._pattern

    def _structural(self, places: np.ndarray) -> int:
        r = self.U.shape[1]
        return int(structural_rank(csr_matrix((np.ones(len(places)), (places // r, places % r)), shape=(r, r))))

    def closed_form(self) -> int:
        return len(self.values) + (self.gate is not None)


@dataclass(kw_only=True)
class SVFT(BasisVariant):
    """SVFT with one of the paper's four patterns.

    pattern: "plain", "banded", "random" or "top_k". off_diagonals: d; for random and top_k it says how
        many entries there are, as many as banded would have.
    profile: "paper" or "released", see the module's text.
    rank: directions that M acts on: null for all, a number, a share of the energy, or "gavish_donoho".
    decomposition: "svd", "randomized_svd", "als" or "nmf"; iterations: its own.
    seed: of the decomposition's draws and of the random pattern.
    budget: decides the directions of plain, d of each layer of banded, the entries of random and top_k.
    """

    name: str = "svft"
    pattern: str = "plain"
    off_diagonals: int = 0
    profile: str = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        field_checks.one_of(self, "pattern", PATTERNS)
        field_checks.one_of(self, "profile", PROFILES)
        field_checks.whole(self, "off_diagonals", at_least=0)
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
            field_checks.budget(self, "off_diagonals")
        self._bands: dict[str, int] = {}  # d of the layers, by name
        self._entries: dict[str, int] = {}  # entries of M, where a budget decides them

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
            form = layers.of(layer)
            assert form is not None
            out_features, in_features = form.matrix.shape
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
            self._entries = share_out(most, parameters, {name: n * n for name, n in most.items()})
        return {}

    def build(self, name: str, layer: nn.Module) -> SparseCore:
        factors = self.factors(name, layer)
        released = self.profile == "released"
        adapter = SparseCore(layer, factors, self._index(name, factors), self.pattern == "plain", gated=released)
        if released:
            nn.init.kaiming_normal_(adapter.values[None, :])
        return adapter

    def _index(self, name: str, factors: Factors) -> torch.Tensor:
        """Rows and columns (2, k) of the entries of M."""
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
    """Entries of an n×n band: k = n(2d + 1) − d(d + 1)."""
    if off_diagonals >= n:
        raise ValueError(f"off_diagonals: {off_diagonals} for {n} directions, allowed: 0 … {n - 1}")
    return n * (2 * off_diagonals + 1) - off_diagonals * (off_diagonals + 1)
