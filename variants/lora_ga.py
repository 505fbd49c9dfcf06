"""LoRA-GA: LoRA that starts in the leading singular directions of the mean gradient of W.

    y = W x + s (B A − B₀ A₀) x                  s = α/r (or α/√r)
    G = mean of ∂L/∂W over the first `batches` batches, before training
    U S Vᵀ = G, the 2r largest:   A₀ = c Vᵀ, rows 1 … r        B₀ = c U, columns r + 1 … 2r        c = out^¼/√γ

so A and B span different directions of the gradient, and the first step of training follows both. What A₀ and B₀ add
is taken off again, as in `lora` with init pissa, so that the first output is the base model's bit for bit.

Paper     Wang et al. 2024, "LoRA-GA: Low-Rank Adaptation with Gradient Approximation", NeurIPS, arXiv 2407.05000.
Code      PEFT 0.21.2, tuners/lora (lora_ga_init, direction ArB2r, scale stable, γ = 16).
Budget    `budget` replaces rank: ranks as even as integers allow.
Family    low rank
Trains    A and B
Changes   A and B: set once, before training
Checked   PEFT: test_lora_ga test_trajectory_of_peft
Hooks     before_training  takes the gradients, then sets A, B, A₀ and B₀
Passes    32 steps forward and backward before training (`batches`)
Cost      `batches` forward and backward passes before training, one dense gradient of every adapted weight while they
          last, and its SVD; then 2r(in + out) numbers per layer, of which half are trained, and twice LoRA's products.
Decay     A and B decay, towards zero and not towards A₀ and B₀, as in PEFT.

  | profile | paper | peft |
  |---|---|---|
  | A₀ | c Vᵀ | Vᵀ |
  | B₀ | c U | c U S: every column times its singular value of G |

Known     Of the paper's form only what it shares with PEFT's was compared with code: that U and Vᵀ enter without S,
          both with c, is from memory, and so is that it scales by α/√r (`scaling: rslora`). PEFT decomposes by four
          iterations of a randomised SVD (`init_iterations: 4`). Its best rate is up to 18 times below LoRA's
          (arXiv 2602.04998). A rank is at most half of what a layer's size allows. ΔW has rank 2r; an export is as
          large.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import field_checks, layers
from variants.core.adapters.from_start import FromStart
from variants.core.allocation import budget
from variants.core.decompositions import Factors, decompose
from variants.core.passes import Passes, all_reached
from variants.core.variant import AdapterVariant

SCALINGS = {"lora": 1.0, "rslora": 0.5}  # s = α/r to this power


class Paper:
    """A₀ and B₀ from the 2r leading singular triplets of G; c: out^¼/√γ."""

    def start(self, basis: Factors, rank: int, c: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A₀ (r, in) and B₀ (out, r)."""
        return c * basis.Vh[:rank], c * basis.U[:, rank : 2 * rank]


class OfPeft(Paper):
    """The code of PEFT."""

    def start(self, basis: Factors, rank: int, c: float) -> tuple[torch.Tensor, torch.Tensor]:
        return basis.Vh[:rank], c * basis.U[:, rank : 2 * rank] * basis.s[rank : 2 * rank]


PROFILES = {"paper": Paper(), "peft": OfPeft()}


@dataclass(kw_only=True)
class LoRAGA(AdapterVariant):
    """LoRA-GA.

    rank: of every layer. alpha: numerator of the scaling. scaling: "lora" (α/r) or "rslora" (α/√r).
    batches: of a step each, whose gradients are averaged. gamma: γ. init_iterations: of a randomised SVD; null for the
    exact SVD. profile: "paper" or "peft", see the module's docstring.
    budget: trained parameters, in place of rank (`variants.core.allocation.budget`).
    """

    name: str = "lora_ga"
    rank: int = 8
    alpha: float = 16.0
    scaling: str = "lora"
    batches: int = 32
    gamma: float = 16.0
    init_iterations: int | None = None
    profile: str = "paper"
    budget: int | None = None

    adapters: dict[str, FromStart] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank", "batches")
        field_checks.check_positive(self, "alpha", "gamma")
        field_checks.check_one_of(self, "scaling", tuple(SCALINGS))
        field_checks.check_one_of(self, "profile", tuple(PROFILES))
        if self.init_iterations is not None:
            field_checks.check_int(self, "init_iterations")
        field_checks.check_budget(self, "rank")
        self._ranks: dict[str, int] = {}

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {"rank": 2, "batches": 2},
            {"rank": 3, "batches": 3, "scaling": "rslora", "alpha": 4.0, "profile": "peft"},
            {"rank": 1, "batches": 1, "gamma": 64.0, "init_iterations": 4},
            {"budget": 131, "batches": 2},
        ]

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        sizes = {name: layers.size(layer) for name, layer in self.select(model, head).items()}
        most = {name: min(size) // 2 for name, size in sizes.items()}
        for name, (rows, columns) in sizes.items():
            if most[name] < (self.rank if self.budget is None else 1):
                raise ValueError(
                    f"rank: {self.rank} for {name} of size {rows}×{columns}, allowed: 1 … {most[name]}; it takes twice "
                    "as many directions"
                )
        self._ranks = dict.fromkeys(sizes, self.rank)
        if self.budget is not None:
            self._ranks = budget.spread({name: sum(size) for name, size in sizes.items()}, self.budget, most)

    def build(self, name: str, layer: nn.Module) -> FromStart:
        rank, (rows, columns) = self._ranks[name], layers.size(layer)
        empty = layers.matrix(layer).detach().new_zeros
        return FromStart(layer, self.alpha / rank ** SCALINGS[self.scaling], empty(rank, columns), empty(rows, rank))

    @torch.no_grad()
    def before_training(self, passes: Passes[Any]) -> None:
        total: dict[str, torch.Tensor] = {}
        for batch in passes.steps(self.batches):
            with torch.enable_grad():
                gradients = passes.gradients(self.adapters, batch)
            total |= {name: total[name] + g if name in total else g for name, g in gradients.items()}
        all_reached(total, self.adapters)
        for name, adapter in self.adapters.items():
            adapter.set_start(*self.start_of(name, total[name] / self.batches))

    def start_of(self, name: str, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A₀ (r, in) and B₀ (out, r) of the layer `name`. gradient: (out, in)."""
        if not bool(gradient.isfinite().all()) or not bool(gradient.any()):
            raise ValueError(f"targets: the gradient of {name} is zero or not finite; exclude it")
        rank = self._ranks[name]
        method = "svd" if self.init_iterations is None else "randomized_svd"
        basis = decompose(gradient, method, 2 * rank, iterations=self.init_iterations)
        return PROFILES[self.profile].start(basis, rank, gradient.shape[0] ** 0.25 / self.gamma**0.5)

    def state_dict(self) -> dict[str, Any]:
        return {"start": {name: {"A": adapter.A0, "B": adapter.B0} for name, adapter in self.adapters.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, adapter in self.adapters.items():
            adapter.set_start(state["start"][name]["A"], state["start"][name]["B"])
