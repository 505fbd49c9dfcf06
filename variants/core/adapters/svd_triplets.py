"""Triplets: updates in the form of a singular value decomposition, as in AdaLoRA and the methods that follow it.

    ΔW = s Σ_i e_i B_i A_i        A_i: 1×in, B_i: out×1 ~ N(0, 0.02²)    e_i: zero
    S_i = s(e_i) + mean_j s(A_ij) + mean_j s(B_ji)      score of a triplet, from the scores of its entries
    R(A, B): regularizer, the distance of A Aᵀ and Bᵀ B from the identity

Source: Zhang et al. 2023 (AdaLoRA, arXiv 2303.10512), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn

from variants.core.adapters.adapter import LowRank

INIT_STD = 0.02
PARTS = {"A": 0, "B": 1, "e": 0}  # the parameters of triplets, and the dimension along which triplets are counted


class Triplets(LowRank):
    """B diag(e) A with the start above: ΔW is zero, and e trains first."""

    e: nn.Parameter

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float) -> None:
        super().__init__(base, rank, scale, dropout, diagonal=True)
        nn.init.normal_(self.A, std=INIT_STD)
        nn.init.normal_(self.B, std=INIT_STD)
        nn.init.zeros_(self.e)


def parameters(adapters: Mapping[str, LowRank]) -> dict[str, nn.Parameter]:
    """Return the scored parameters, by "layer.part", of the layers that have components left."""
    # A layer without components is not part of the loss, so it has no gradients.
    filled = {name: adapter for name, adapter in adapters.items() if not adapter.is_empty}
    parts = {f"{name}.{part}": getattr(adapter, part) for name, adapter in filled.items() for part in PARTS}
    return {name: parameter for name, parameter in parts.items() if parameter is not None}


def scores(of_entries: Mapping[str, torch.Tensor], layers: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return S (r,) of every layer's components; of_entries["layer.part"] are the scores of a parameter's entries.

    Components without e (LoRA's) have the sum of the two means.
    """
    a, b = ([of_entries[f"{layer}.{part}"] for layer in layers] for part in ("A", "B"))
    # A layer without components has no columns to average.
    filled = [i for i, of_layer in enumerate(a) if len(of_layer)]
    empty = {layer: of_layer.new_zeros(0) for layer, of_layer in zip(layers, a, strict=True)}
    sums = _over_stacks([a[i] for i in filled], lambda stack: stack.mean(2))
    means_b = _over_stacks([b[i] for i in filled], lambda stack: stack.mean(1))
    if filled and f"{layers[filled[0]]}.e" in of_entries:
        sums = list(torch._foreach_add([of_entries[f"{layers[i]}.e"] for i in filled], sums))
    sums = list(torch._foreach_add(sums, means_b)) if filled else []
    return empty | {layers[i]: score for i, score in zip(filled, sums, strict=True)}


def orthogonality(factors: Iterable[tuple[torch.Tensor, torch.Tensor]], profile: str) -> torch.Tensor | None:
    """Return the regularizer R of pairs A (r, in), B (out, r); None if no pair has a component.

    profile: "paper" sums ‖A Aᵀ − I‖² + ‖Bᵀ B − I‖² over the pairs; "released" is the mean of ‖·‖, not squared, over all
    A and B, as in the code of AdaLoRA and IncreLoRA.
    """
    filled = [(a, b) for a, b in factors if len(a)]
    if not filled:
        return None
    squares = _over_stacks([a for a, _ in filled], lambda stack: _off_identity(stack @ stack.mT))
    squares += _over_stacks([b for _, b in filled], lambda stack: _off_identity(stack.mT @ stack))
    together = torch.stack(squares)
    return together.sum() if profile == "paper" else together.sqrt().mean()


def _off_identity(grams: torch.Tensor) -> torch.Tensor:
    """Return ‖G − I‖² (k,) of matrices G (k, r, r)."""
    eye = torch.eye(grams.shape[-1], dtype=grams.dtype, device=grams.device)
    return (grams - eye).square().sum((1, 2))


def _over_stacks(
    matrices: Sequence[torch.Tensor], compute: Callable[[torch.Tensor], torch.Tensor]
) -> list[torch.Tensor]:
    """Apply `compute` to each matrix; those of one shape are stacked (k, n, m) and computed together."""
    by_shape: dict[torch.Size, list[int]] = {}
    for i, matrix in enumerate(matrices):
        by_shape.setdefault(matrix.shape, []).append(i)
    results: dict[int, torch.Tensor] = {}
    for indices in by_shape.values():
        results |= zip(indices, compute(torch.stack([matrices[i] for i in indices])).unbind(), strict=True)
    return [results[i] for i in range(len(matrices))]
