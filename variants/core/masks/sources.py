"""Sources of masks: what an entry of a weight W (out, in) scores. A mask has the entries that score most.

| source | score of an entry | known from |
|---|---|---|
| random | uniform, drawn with `seed` and the layer's name | the weight |
| magnitude | abs(W) | the weight |
| low_rank | abs(U_r S_r V_rᵀ), the r = `filter_rank` leading singular triplets of W | the weight |
| gradient | abs(Σ G), G = ∂L/∂W of a step | gradients |
| weight_gradient | abs(W Σ G) | gradients |
| fisher | empirical: Σ (∂ℓ/∂W)² over single rows; of steps in training: Σ G² | gradients |
| true_fisher | Σ over rows and classes of p (∂(−log p)/∂W)², p the model's own probabilities | rows before training |
| activation | abs(W_ij) √(Σ x_j²) over the places where the layer reads x | inputs before training |
| change | abs(ΔW) after a dense phase | a dense phase |

Sources   random: Xu and Zhang 2024, arXiv 2405.02596; magnitude, gradient, weight_gradient: SHiRA, arXiv 2406.13175,
          the last after SNIP, arXiv 1810.02340; low_rank: LIFT, arXiv 2506.00772; fisher: Sung et al. 2021,
          arXiv 2111.09839; activation: Wanda, arXiv 2306.11695; change: LT-SFT, arXiv 2110.07560.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from variants.core import collectives, seeding
from variants.core.adapters.sparse_delta import SparseDelta
from variants.core.field_checks import registrar
from variants.core.passes import Passes, all_reached

Scores = dict[str, torch.Tensor]  # (out, in) by layer

SOURCES: dict[str, type[Source]] = {}
register = registrar(SOURCES)


@dataclass(kw_only=True)
class Source:
    """A source. A subclass defines `of_weight`, or `measured` and `score`, or `before_training`, or none (change).

    known: "weight" (at any time), "gradients" (before or in training), "passes" (before training alone) or "change".
    outside: whether the order of entries that are not trained can change. weights: whether it reads W.
    """

    known: ClassVar[str] = "weight"
    outside: ClassVar[bool] = True
    weights: ClassVar[bool] = True

    def check(self, sizes: Mapping[str, tuple[int, int]]) -> None:
        """Raise `ValueError` for layers, by name with (out, in), that it can't score."""

    def of_weight(self, name: str, weight: torch.Tensor, choice: int = 0) -> torch.Tensor:
        """Return the scores (out, in) by the weight (out, in) as it is now. choice: its number in this run."""
        raise NotImplementedError(f"{type(self).__name__}.of_weight")

    def measured(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return what one step's gradient, summed over the processes, adds to the sum that `score` is given."""
        return gradient

    def score(self, total: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        """Return the scores for the sum `total` (out, in) of what was measured. weight: (out, in), if it `weights`."""
        raise NotImplementedError(f"{type(self).__name__}.score")

    def before_training(self, adapters: Mapping[str, SparseDelta], passes: Passes[Any]) -> Scores:
        """Return the scores before training."""
        raise NotImplementedError(f"{type(self).__name__}.before_training")


@register("random")
@dataclass(kw_only=True)
class Random(Source):
    """seed: of the draw. The entries that score most in one layer are those of a random permutation's start."""

    weights: ClassVar[bool] = False
    seed: int = 0

    def permutation(self, name: str, size: int) -> torch.Tensor:
        """Return the numbers 0 … size − 1 in a random order that depends on the seed and the layer's name."""
        return self._drawn(name, size)[0]

    def _drawn(self, name: str, size: int) -> tuple[torch.Tensor, torch.Generator]:
        generator = seeding.generator(self.seed, name)
        return torch.randperm(size, generator=generator, device="cpu"), generator

    def of_weight(self, name: str, weight: torch.Tensor, choice: int = 0) -> torch.Tensor:
        order, generator = self._drawn(f"{name}/{choice}" if choice else name, weight.numel())
        # Independent uniform numbers, so that layers compare; float64, so that none are equal.
        numbers = torch.rand(len(order), generator=generator, dtype=torch.float64).sort(descending=True).values
        return torch.empty_like(numbers).index_copy_(0, order, numbers).view(weight.shape).to(weight.device)


@register("magnitude")
@dataclass(kw_only=True)
class Magnitude(Source):
    outside: ClassVar[bool] = False

    def of_weight(self, name: str, weight: torch.Tensor, choice: int = 0) -> torch.Tensor:
        return weight.abs()


@register("low_rank")
@dataclass(kw_only=True)
class LowRankPart(Source):
    """filter_rank: r, at most the smaller side of a layer."""

    filter_rank: int = 32

    def check(self, sizes: Mapping[str, tuple[int, int]]) -> None:
        for name, (rows, columns) in sizes.items():
            if self.filter_rank > min(rows, columns):
                raise ValueError(
                    f"filter_rank: {self.filter_rank} for {name} of size {rows}×{columns}, "
                    f"allowed: 1 … {min(rows, columns)}"
                )

    def of_weight(self, name: str, weight: torch.Tensor, choice: int = 0) -> torch.Tensor:
        u, s, vh = torch.linalg.svd(weight.to(torch.promote_types(weight.dtype, torch.float32)), full_matrices=False)
        r = self.filter_rank
        return ((u[:, :r] * s[:r]) @ vh[:r]).abs()


@register("gradient")
@dataclass(kw_only=True)
class Gradient(Source):
    """collect: steps whose gradients are summed."""

    known: ClassVar[str] = "gradients"
    weights: ClassVar[bool] = False
    collect: int = 1

    def score(self, total: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        return total.abs()

    def before_training(self, adapters: Mapping[str, SparseDelta], passes: Passes[Any]) -> Scores:
        sums: Scores = {}
        with torch.enable_grad():
            for batches in passes.steps(self.collect):
                for name, gradient in passes.gradients(adapters, batches).items():
                    new = self.measured(gradient)
                    sums[name] = sums[name] + new if name in sums else new
        all_reached(sums, adapters)
        weights = {
            name: adapter.layer_kind.matrix.detach() if self.weights else None for name, adapter in adapters.items()
        }
        return {name: self.score(sums[name], weight) for name, weight in weights.items()}


@register("weight_gradient")
@dataclass(kw_only=True)
class WeightGradient(Gradient):
    weights: ClassVar[bool] = True

    def score(self, total: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        assert weight is not None
        return (total * weight).abs()


@register("fisher")
@dataclass(kw_only=True)
class Fisher(Gradient):
    """samples: training rows whose gradients are squared before training. collect: steps of a choice in training."""

    samples: int = 1024

    def measured(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.square()

    def score(self, total: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        return total

    def before_training(self, adapters: Mapping[str, SparseDelta], passes: Passes[Any]) -> Scores:
        return fisher(adapters, passes, self.samples)


@register("true_fisher")
@dataclass(kw_only=True)
class TrueFisher(Source):
    """samples: training rows over whose classes it is summed."""

    known: ClassVar[str] = "passes"
    weights: ClassVar[bool] = False
    samples: int = 1024

    def before_training(self, adapters: Mapping[str, SparseDelta], passes: Passes[Any]) -> Scores:
        return fisher(adapters, passes, self.samples, true="source: true_fisher")


@register("activation")
@dataclass(kw_only=True)
class Activation(Source):
    """collect: steps whose inputs are summed."""

    known: ClassVar[str] = "passes"
    collect: int = 1

    def before_training(self, adapters: Mapping[str, SparseDelta], passes: Passes[Any]) -> Scores:
        sums: Scores = {}
        for batches in passes.steps(self.collect):
            for name, squares in passes.squared_inputs(adapters, batches).items():
                sums[name] = sums[name] + squares if name in sums else squares
        return {
            name: adapter.layer_kind.matrix.detach().abs() * sums[name].sqrt() for name, adapter in adapters.items()
        }


@register("change")
@dataclass(kw_only=True)
class Change(Source):
    known: ClassVar[str] = "change"
    weights: ClassVar[bool] = False


def fisher(
    adapters: Mapping[str, SparseDelta],
    passes: Passes[Any],
    rows: int,
    *,
    true: str | None = None,
    biases: Mapping[str, int] | None = None,
    size: Callable[[torch.Tensor], torch.Tensor] = torch.square,
) -> Scores:
    """Return the diagonal Fisher information (out, in) of every layer, summed over `rows` rows and all processes.

    true: the field and value that ask for the model's own classes; None for the loss. biases: number of entries of
    biases that take part, whose scores are returned by "layer.bias". size: what is summed of a gradient.
    """
    sums: Scores = {}
    for name, adapter in adapters.items():
        sums[name] = adapter.values.new_zeros(adapter.out_features, adapter.in_features)
        if biases and biases.get(name):
            sums[f"{name}.bias"] = adapter.values.new_zeros(biases[name])

    def add(p: Any, gradients: Mapping[str, torch.Tensor]) -> None:
        for name, gradient in gradients.items():
            if name in sums:
                sums[name] += (p * size(gradient)).detach()

    with torch.enable_grad():
        for row in passes.rows(rows):
            if true is not None:
                for p, gradients in passes.of_classes(adapters, row, true):
                    add(p, gradients)
            else:
                add(1.0, passes.of_row(adapters, row))
    return {name: collectives.all_reduce_sum(total) for name, total in sums.items()}
