"""SVDiff: the singular values of every weight are shifted, its singular vectors stay.

    W = U diag(σ) Vᵀ        W' = U diag(ReLU(σ + s·δ)) Vᵀ        δ: one per singular value, zero at the start

    y = W x + U((ReLU(σ + s·δ) − σ) ⊙ Vᵀx)                       s: scale

Paper     Han et al. 2023, "SVDiff: Compact Parameter Space for Diffusion Fine-Tuning", ICCV,
          arXiv 2303.11305: equation 2.
Code      mkshing/svdiff-pytorch a78f69e, the one in use; the authors released none.
Hooks     none: nothing changes in training but δ.
Cost      min(in, out) parameters for each layer; U and V are kept beside W (for a square W twice its
          memory) and applied in each forward pass, or put together with W where tokens are many
          (`variants.core.kernels.basis`). The decomposition is made once, at `attach`.
Decay     δ decays, as in the released code, whose optimizer decays all that it trains.

Differences
  The released code puts W' in W's place and rebuilds it in every forward pass; we add the update to
  W x, so that nothing but rounding tells the two apart and at the start not even that.
  It also shifts weights with one dimension (norms, at a lower rate); we adapt matrices only.
  `rank` below all: the leading directions are shifted and the rest of W stays as it is.
  `decomposition: nmf`: σ are then the weights of the parts, and U, V are not orthogonal.

Known     δ learns at about 1,000 times the rate of full fine-tuning (1e-3 in the released code). A σ that
          is shifted below zero has no gradient; only the optimizer's moments and its decay move it back.
          A σ that is exactly zero never moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from variants.core import field_checks
from variants.core.adapters.singular_basis import InBasis
from variants.core.basis_variant import BasisVariant
from variants.core.decompositions import Factors


class ShiftedValues(InBasis):
    """C = diag(ReLU(s + step·δ) − s)."""

    s: torch.Tensor

    def __init__(self, base: nn.Module, factors: Factors, scale: float) -> None:
        super().__init__(base, factors)
        self.register_buffer("s", factors.s, persistent=False)
        self.delta_s = nn.Parameter(torch.zeros_like(factors.s))
        self.step = scale

    def core(self) -> torch.Tensor:
        return torch.relu(self.s + self.step * self.delta_s) - self.s


@dataclass(kw_only=True)
class SVDiff(BasisVariant):
    """W = U D Vᵀ with a tunable diagonal.

    rank: directions that are shifted: null for all, a number, a share of the energy as a fraction
        below 1, or "gavish_donoho".
    scale: of δ. decomposition: "svd", "randomized_svd", "als" or "nmf"; iterations, seed: its own.
    """

    name: str = "svdiff"
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        field_checks.positive(self, "scale")

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {},
            {"rank": 3, "scale": 2.0},
            {"rank": 0.8, "decomposition": "randomized_svd", "iterations": 4, "seed": 1},
            {"rank": "gavish_donoho", "decomposition": "als"},
            {"rank": 4, "decomposition": "nmf"},
            {"budget": 30},
        ]

    def build(self, name: str, layer: nn.Module) -> ShiftedValues:
        return ShiftedValues(layer, self.factors(name, layer), self.scale)
