"""LoRA-XS: a trained r×r matrix between the leading singular vectors of every weight.

    y = W x + (α/r) B R A dropout(x)        A = Σ_r V_rᵀ, B = U_r: of W's SVD, frozen        R: r×r, trained

Paper     Bałazy et al. 2024, "LoRA-XS: Low-Rank Adaptation with Extremely Small Number of
          Parameters", arXiv 2405.17604: section 3.
Code      MohammadrezaBanaei/LoRA-XS e50b1a8.
Family    singular basis
Trains    R, r×r of each layer
Changes   nothing
Checked   written out: test_svd test_lora_xs_by_its_formula
Hooks     none: only R changes in training.
Cost      r² parameters for each layer, independent of its size; A and B are stored, r(in + out) numbers, and
          applied as in LoRA. The decomposition is computed once, by `attach`.
Decay     R decays, as with transformers' trainer, which trains the released code.

Differences
  R starts at N(0, 10⁻¹⁰), so the first output is close but not equal to the base model's; with `init_std: 0` it is
  equal. (R = 0 can be trained, because A and B are not zero.)
  The released code decomposes exactly, and earlier by scikit-learn's randomised SVD with 10 iterations
  (`decomposition: randomized_svd`, `seed: 42`). Its ablations, trailing singular vectors and random A and B, are not
  included.

Known     The published GLUE numbers for MRPC, RTE and STS-B start from an MNLI checkpoint; methods that don't are not
          comparable. A and B come from the pretrained weight: with a small r, updates outside its leading directions
          are out of reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from variants.core import field_checks
from variants.core.adapters.singular_basis import InBasis
from variants.core.basis_variant import BasisVariant
from variants.core.decompositions import Factors, Rule


class SmallCore(InBasis):
    """C = R diag(s), so that diag(s) Vh is the method's A; scale = α/r."""

    s: torch.Tensor
    counts_rank_on_device = False

    def __init__(self, base: nn.Module, factors: Factors, alpha: float, dropout: float, init_std: float) -> None:
        super().__init__(base, factors)
        self.register_buffer("s", factors.s, persistent=False)
        r = len(factors.s)
        self.R = nn.Parameter(factors.U.new_zeros(r, r))
        if init_std:
            nn.init.normal_(self.R, std=init_std)
        self.scale = alpha / r
        self.set_dropout(dropout)

    def core(self) -> torch.Tensor:
        return self.R * self.s

    @property
    def rank(self) -> int:
        """r, because a trained square matrix is generically not singular."""
        return len(self.R)

    def rank_source(self) -> None:
        return None

    def closed_form(self) -> int:
        return self.R.numel()


@dataclass(kw_only=True)
class LoRAXS(BasisVariant):
    """LoRA-XS.

    rank: r of every layer: a number, a fraction of the energy (below 1), "gavish_donoho", or
        null for all. alpha: numerator of the scaling. dropout: on the adapter's input.
    init_std: standard deviation of the initial R.
    decomposition: "svd", "randomized_svd", "als" or "nmf"; iterations, seed: of the decomposition.
    """

    exact_at_start: ClassVar[bool] = False

    name: str = "lora_xs"
    rank: Rule = 16
    alpha: float = 16.0
    dropout: float = 0.0
    init_std: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        field_checks.check_positive(self, "alpha")
        field_checks.check_fraction(self, "dropout")
        field_checks.check_not_negative(self, "init_std")

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {"rank": 4},
            {"rank": 3, "dropout": 0.1, "decomposition": "randomized_svd", "seed": 42},
            {"rank": 0.9, "init_std": 0.0},
            {"budget": 50},
        ]

    def parameters(self, directions: int) -> int:
        return directions**2

    def build(self, name: str, layer: nn.Module) -> SmallCore:
        return SmallCore(layer, self.factors(name, layer), self.alpha, self.dropout, self.init_std)
