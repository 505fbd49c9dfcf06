"""SVDiff: the singular values of every weight are shifted, its singular vectors are frozen.

    W = U diag(σ) Vᵀ        W' = U diag(ReLU(σ + s·δ)) Vᵀ        δ: one per singular value, zero at the start

    y = W x + U((ReLU(σ + s·δ) − σ) ⊙ Vᵀx)                       s: scale

Paper     Han et al. 2023, "SVDiff: Compact Parameter Space for Diffusion Fine-Tuning", ICCV,
          arXiv 2303.11305: equation 2.
Code      mkshing/svdiff-pytorch a78f69e, which is generally used; the authors released none.
Family    singular basis
Trains    a shift of each singular value
Changes   nothing
Checked   released code: test_svd test_every_number_of_the_released_svdiff
Hooks     none: only δ changes in training.
Cost      min(in, out) parameters for each layer; U and V are stored in addition to W (for a square W twice its
          memory). In training they are applied in place of W, or merged with W if there are many tokens
          (`variants.core.kernels.basis`). The decomposition is computed once, by `attach`.
Decay     δ decays, as in the released code, whose optimizer decays all trained parameters.

Differences
  The released code replaces W by W' and rebuilds it in every forward pass; here x is multiplied by V and U, and in
  evaluation the update is added to W x: both differ by rounding only, and an evaluation at the start not at all.
  It also shifts weights with one dimension (norms, at a lower rate); here only matrices are adapted.
  With a smaller `rank` the leading directions are shifted and the rest of W is not changed.
  With `decomposition: nmf` σ are the weights of the components, and U, V are not orthogonal.

Known     δ needs about 1,000 times the learning rate of full fine-tuning (1e-3 in the released code). A σ that
          is shifted below zero has no gradient; only the optimizer's moments and the decay move it back.
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

    rank: directions that are shifted: null for all, a number, a fraction of the energy
        below 1, or "gavish_donoho".
    scale: of δ. decomposition: "svd", "randomized_svd", "als" or "nmf"; iterations, seed: of the decomposition.
    """

    name: str = "svdiff"
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        field_checks.check_positive(self, "scale")

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
