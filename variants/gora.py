"""GoRA: ranks and start of LoRA from the mean gradients of the base model.

    y = W x + s B A x            s = α/√r (or α/r), with the rank r of the layer
    G = mean of ∂L/∂W over the first `batches` batches, before training
    I = mean of abs(W ∘ G)       a = I / Σ I                         importance and share of a layer
    r = round(P a / f),  P = `rank` · Σ f,  f = √(in + out)           clamped to min_rank … max_rank
    A: r×in, kaiming-uniform(√5)    B = −γ/α · G Aᵀ (A Aᵀ + 1e-8 I)⁺   γ = `start_lr` · q/√(r/in), q = α/s

so the first forward pass is that after a step of about `start_lr` against the gradient, as far as A's rows span it.

Paper     He et al. 2025, "GoRA: Gradient-driven Adaptive Low Rank Adaptation", NeurIPS, arXiv 2502.12171.
Code      hhnqqq/MyTransformers 4037d4d and aac1b21, common/lora_modules/gora.py.
Budget    `budget` replaces rank: ranks in proportion to a/f, exact to less than one rank; with profile paper alone.
Family    adaptive ranks
Trains    A and B
Changes   ranks: chosen once, before training
Checked   released code: test_gora test_every_number_of_the_released_code
Hooks     before_training  takes the gradients, then sets ranks, A and B
Passes    32 steps forward and backward before training (`batches`)
Cost      `batches` forward and backward passes before training and one dense gradient of every adapted weight while
          they last; then r(in + out) parameters per layer, as LoRA.
Decay     A and B decay.

  | profile | paper | released (4037d4d) | released_2025_07 (aac1b21) |
  |---|---|---|---|
  | sign of B | minus | plus: the start raises the loss | minus |
  | r | round(P a / f) | round(P a) // f | as released |
  | layer whose gradient is computed last | mean of n batches | of n − 1: its last one is lost | as released |
  | I | of the mean gradient | of the mean gradient | of the mean gradient divided by its count again |

The default is paper. The scripts use f = in + out (`size: identity`) with every rank at least 4 and at most 32, α/√r, B
with 16 times the rate (`lr_ratio`), and weight decay 5e-4; the paper's f is a square root.

Known     The clamp makes the number of parameters drift from `rank`'s; only `budget` meets one. ΔW is not zero at the
          start. The released options that choose the number of batches by convergence, move W while they collect, or
          compensate ΔW in W are not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from variants.core import field_checks, layers
from variants.core.adapters.adapter import LowRank
from variants.core.allocation.budget import proportional, spread
from variants.core.allocation.layer_scores import BY_GRADIENT, reads_weights
from variants.core.passes import Passes, all_reached
from variants.core.variant import AdapterVariant

SIZES: dict[str, Callable[[int], float]] = {"identity": float, "sqrt": math.sqrt, "log1p": math.log1p}
ROUNDINGS: dict[str, Callable[[float], int]] = {"round": round, "ceil": math.ceil, "floor": math.floor}
SCALINGS = ("rslora", "lora")


class Paper:
    """The method of the paper, in the points in which the released code differs."""

    sign = -1.0

    def mean(
        self, total: dict[str, torch.Tensor], last: tuple[str, torch.Tensor | None], count: int
    ) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
        """Return the mean gradients by layer, and how many gradients each is the mean of.

        total: sums over `count` batches. last: the layer that the backward pass reaches last, and its sum without the
        last batch.
        """
        return {name: g / count for name, g in total.items()}, dict.fromkeys(total, count)

    def scored(self, importance: torch.Tensor, count: int) -> torch.Tensor:
        return importance

    def rank(self, wanted: float, size: float, rounding: Callable[[float], int]) -> int:
        """Return the rank before clamping. wanted: P a. size: f."""
        return rounding(wanted / size)


class Released(Paper):
    """The code at 4037d4d."""

    sign = 1.0

    def mean(
        self, total: dict[str, torch.Tensor], last: tuple[str, torch.Tensor | None], count: int
    ) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
        means, counts = super().mean(total, last, count)
        name, earlier = last
        if earlier is None:
            raise ValueError("batches: 1 with profile: released leaves its last layer without a gradient, allowed: ≥ 2")
        return means | {name: earlier / (count - 1)}, counts | {name: count - 1}

    def rank(self, wanted: float, size: float, rounding: Callable[[float], int]) -> int:
        return int(rounding(wanted) // size)


class ReleasedEarlier(Released):
    """The code at aac1b21."""

    sign = -1.0

    def scored(self, importance: torch.Tensor, count: int) -> torch.Tensor:
        return importance / count


PROFILES = {"paper": Paper(), "released": Released(), "released_2025_07": ReleasedEarlier()}


@dataclass(kw_only=True)
class GoRA(AdapterVariant):
    """GoRA.

    rank: reference, of which `rank` · Σ f is shared out. min_rank, max_rank: bounds of a layer's rank.
    alpha, dropout, lr_ratio: as in LoRA. scaling: "rslora" (α/√r) or "lora" (α/r), with the layer's own rank.
    batches: of a step each, whose gradients are averaged. importance: of `layer_scores.BY_GRADIENT`.
    temperature: of a softmax over the importances, scaled to 0…1, in place of I / Σ I. root: take √I.
    size: f of in + out: "sqrt", "identity", "log1p". rounding: "round", "ceil", "floor".
    start_lr: length of the first step. profile: see the module's docstring.
    budget: trained parameters, in place of rank (`variants.core.allocation.budget`).
    """

    exact_at_start: ClassVar[bool] = False

    name: str = "gora"
    rank: int = 8
    min_rank: int = 4
    max_rank: int = 32
    alpha: float = 16.0
    dropout: float = 0.0
    scaling: str = "rslora"
    lr_ratio: float = 1.0
    batches: int = 32
    importance: str = "product_mean"
    temperature: float | None = None
    root: bool = False
    size: str = "sqrt"
    rounding: str = "round"
    start_lr: float = 0.05
    profile: str = "paper"
    budget: int | None = None

    adapters: dict[str, LowRank] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank", "min_rank", "max_rank", "batches")
        field_checks.check_positive(self, "alpha", "lr_ratio", "start_lr")
        field_checks.check_fraction(self, "dropout")
        field_checks.check_one_of(self, "scaling", SCALINGS)
        field_checks.check_one_of(self, "importance", tuple(BY_GRADIENT))
        field_checks.check_one_of(self, "size", tuple(SIZES))
        field_checks.check_one_of(self, "rounding", tuple(ROUNDINGS))
        field_checks.check_one_of(self, "profile", tuple(PROFILES))
        if self.temperature is not None:
            field_checks.check_positive(self, "temperature")
        if self.max_rank < self.min_rank:
            raise ValueError(f"max_rank: {self.max_rank}, allowed: at least min_rank, which is {self.min_rank}")
        field_checks.check_budget(self, "rank")
        if self.budget is not None:
            field_checks.check_without_effect(self, "rounding", f"budget: {self.budget}")
            if self.profile != "paper":
                raise ValueError(f"budget: {self.budget} with profile: {self.profile}, allowed: null; it meets none")
        self._most: dict[str, int] = {}  # largest rank by layer
        self._start: dict[str, int] = {}  # rank by layer until the passes decide

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        passes = {"min_rank": 1, "max_rank": 6, "batches": 3}
        return [
            {"rank": 3, **passes},
            {"rank": 2, "profile": "released", "size": "identity", "dropout": 0.1, **passes},
            {"rank": 3, "profile": "released_2025_07", "scaling": "lora", "alpha": 4.0, **passes},
            {"rank": 2, "importance": "gradient_nuclear", "temperature": 0.5, "root": True, "lr_ratio": 2.0, **passes},
            {"budget": 230, **passes},
        ]

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        sizes = {name: layers.size(layer) for name, layer in self.select(model, head).items()}
        self._most = {name: min(self.max_rank, *size) for name, size in sizes.items()}
        for name, (rows, columns) in sizes.items():
            if self.min_rank > self._most[name]:
                allowed = f"allowed: 1 … {self._most[name]}"
                raise ValueError(f"min_rank: {self.min_rank} for {name} of size {rows}×{columns}, {allowed}")
        self._start = {name: min(max(self.rank, self.min_rank), most) for name, most in self._most.items()}
        if self.budget is not None:
            costs = {name: sum(size) for name, size in sizes.items()}
            self._start = spread(costs, self.budget, self._most, least=self.min_rank)

    def build(self, name: str, layer: nn.Module) -> LowRank:
        return LowRank(layer, self._start[name], self._scale(self._start[name]), self.dropout)

    def _scale(self, rank: int) -> float:
        return self.alpha / (math.sqrt(rank) if self.scaling == "rslora" else rank)

    def needs_whole_weights(self) -> str | None:
        return f"importance: {self.importance}" if reads_weights(self.importance) else None

    @torch.no_grad()
    def before_training(self, passes: Passes[Any]) -> None:
        total: dict[str, torch.Tensor] = {}
        last: tuple[str, torch.Tensor | None] = ("", None)
        for batch in passes.steps(self.batches):
            with torch.enable_grad():
                gradients = passes.gradients(self.adapters, batch)
            last = (name := list(gradients)[-1]), total.get(name)
            total |= {name: total[name] + g if name in total else g for name, g in gradients.items()}
        all_reached(total, self.adapters)
        profile = PROFILES[self.profile]
        means, counts = profile.mean(total, last, self.batches)
        importance = {name: profile.scored(self.scored(name, means[name]), counts[name]) for name in self.adapters}
        for name, rank in self.ranks_for({name: float(score) for name, score in importance.items()}).items():
            adapter = self.adapters[name]
            adapter.reshape(rank)
            adapter.scale = self._scale(rank)
            adapter.A.copy_(self.drawn(name, adapter.A))
            adapter.B.copy_(profile.sign * self.start_of(means[name], adapter.A))

    def scored(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        """Return the importance (a scalar) of the layer `name`. gradient: (out, in)."""
        score = BY_GRADIENT[self.importance](layers.matrix(self.adapters[name].base).to(gradient.dtype), gradient)
        return score.sqrt() if self.root else score

    def ranks_for(self, importance: Mapping[str, float]) -> dict[str, int]:
        """Return the rank of every layer."""
        if not all(map(math.isfinite, importance.values())):
            raise ValueError("importance: that of a layer is not finite")
        shares = self._shares(importance)
        costs = {name: self.adapters[name].in_features + self.adapters[name].out_features for name in shares}
        sizes = {name: SIZES[self.size](cost) for name, cost in costs.items()}
        least = dict.fromkeys(shares, self.min_rank)
        if self.budget is not None:
            weighted = {name: share / sizes[name] for name, share in shares.items()}
            return proportional(weighted, costs, self.budget, least, self._most)
        whole, rounding, profile = self.rank * sum(sizes.values()), ROUNDINGS[self.rounding], PROFILES[self.profile]
        return {
            name: min(max(profile.rank(whole * share, sizes[name], rounding), self.min_rank), self._most[name])
            for name, share in shares.items()
        }

    def _shares(self, importance: Mapping[str, float]) -> dict[str, float]:
        values = torch.tensor(list(importance.values()), dtype=torch.float64)
        if self.temperature is None:
            shares = values / values.sum()
        else:
            shares = ((values - values.min()) / (values.max() - values.min()) / self.temperature).softmax(0)
        return dict(zip(importance, shares.tolist(), strict=True))

    def drawn(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """Return A (r, in) of the layer `name` at the start."""
        return nn.init.kaiming_uniform_(torch.empty_like(like), a=5**0.5)

    def start_of(self, gradient: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """Return −B (out, r) at the start. gradient: (out, in). a: (r, in)."""
        rank, in_features = a.shape
        gram = a @ a.T + 1e-8 * torch.eye(rank, dtype=a.dtype, device=a.device)
        gamma = self.start_lr / math.sqrt(rank / in_features) * (self.alpha / self._scale(rank))
        return gradient.to(a.dtype) @ a.T @ torch.linalg.pinv(gram) * (gamma / self.alpha)

    def state_dict(self) -> dict[str, Any]:
        return {"ranks": self.ranks()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, adapter in self.adapters.items():
            adapter.reshape(state["ranks"][name])
            adapter.scale = self._scale(state["ranks"][name])

    def optimizer_options(self, name: str) -> Mapping[str, Any]:
        return {"lr_scale": self.lr_ratio} if name.endswith(".B") and self.lr_ratio != 1.0 else {}
