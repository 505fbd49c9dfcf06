"""LoRA-XS: a trained r×r matrix between the leading singular vectors of every weight.

    y = W x + (α/r) B R A dropout(x)        A = Σ_r V_rᵀ, B = U_r: of W's SVD, frozen        R: r×r, trained

Paper     Bałazy et al. 2024, "LoRA-XS: Low-Rank Adaptation with Extremely Small Number of
          Parameters", arXiv 2405.17604: section 3.
Code      MohammadrezaBanaei/LoRA-XS e50b1a8.
Hooks     none: nothing changes in training but R.
Cost      r² parameters for each layer, whatever its size; A and B are kept, r(in + out) numbers, and
          applied as LoRA's. The decomposition is made once, at `attach`.
Decay     R decays, as under transformers' trainer, with which the released code trains.

Differences
  R starts at N(0, 10⁻¹⁰), so that the first output is near the base model's and not equal to it; with
  `init_std: 0` it is. (R = 0 is no dead start: A and B are not zero.)
  The released code decomposes exactly, and earlier by scikit-learn's randomised SVD with 10 iterations
  (`decomposition: randomized_svd`, `seed: 42`). Its choice of the trailing singular vectors and its
  random A and B, both ablations, are not offered.

Known     The published GLUE numbers for MRPC, RTE and STS-B start from an MNLI checkpoint; they are not
          comparable with methods that don't. A and B are those of the pretrained weight: a task whose
          update lies outside its leading directions can't be reached at a small r.
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
        """r: a square matrix that has been trained has no reason to be singular."""
        return len(self.R)

    def rank_source(self) -> None:
        return None

    def closed_form(self) -> int:
        return self.R.numel()


@dataclass(kw_only=True)
class LoRAXS(BasisVariant):
    """LoRA-XS.

    rank: r of every layer: a number, a share of the energy as a fraction below 1, "gavish_donoho", or
        null for all. alpha: numerator of the scaling. dropout: on the adapter's input.
    init_std: of R at the start.
    decomposition: "svd", "randomized_svd", "als" or "nmf"; iterations, seed: its own.
    """

    exact_at_start: ClassVar[bool] = False

    name: str = "lora_xs"
    rank: Rule = 16
    alpha: float = 16.0
    dropout: float = 0.0
    init_std: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        field_checks.positive(self, "alpha")
        field_checks.share(self, "dropout")
        field_checks.not_negative(self, "init_std")

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
