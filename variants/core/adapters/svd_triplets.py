"""Triplets: updates with the shape of a singular value decomposition, AdaLoRA's and those of the methods after it.

    ΔW = s Σ_i e_i B_i A_i        A_i: 1×in, B_i: out×1 ~ N(0, 0.02²)    e_i: zero
    S_i = s(e_i) + mean_j s(A_ij) + mean_j s(B_ji)      score of a triplet, from the scores of its entries
    R(A, B): how far A Aᵀ and Bᵀ B are from the identity

Source: Zhang et al. 2023 (AdaLoRA, arXiv 2303.10512), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn

from variants.core.adapters.adapter import LowRank

INIT_STD = 0.02
PARTS = {"A": 0, "B": 1, "e": 0}  # the parameters of triplets, and the dimension that counts triplets


class Triplets(LowRank):
    """B diag(e) A with the start above: ΔW is zero, and what trains first is e."""

    e: nn.Parameter

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float) -> None:
        super().__init__(base, rank, scale, dropout, diagonal=True)
        nn.init.normal_(self.A, std=INIT_STD)
        nn.init.normal_(self.B, std=INIT_STD)
        nn.init.zeros_(self.e)


def parameters(adapters: Mapping[str, Triplets]) -> dict[str, nn.Parameter]:
    """The parameters that are scored, by "layer.part"; of layers that have triplets left."""
    # A layer without any takes no part in the loss any more, so it has no gradient either.
    filled = {name: adapter for name, adapter in adapters.items() if not adapter.is_empty}
    return {f"{name}.{part}": getattr(adapter, part) for name, adapter in filled.items() for part in PARTS}


def scores(of_entries: Mapping[str, torch.Tensor], layers: Sequence[str]) -> dict[str, torch.Tensor]:
    """S (r,) of every layer's triplets; of_entries["layer.part"] are the scores of a parameter's entries."""
    a, b, e = ([of_entries[f"{layer}.{part}"] for layer in layers] for part in PARTS)
    # A layer that has lost all its triplets has no column to take a mean of.
    filled = [i for i, own in enumerate(e) if len(own)]
    found = dict(zip(layers, e, strict=True))
    means = [*_over_stacks([a[i] for i in filled], lambda stack: stack.mean(2))]
    more = [*_over_stacks([b[i] for i in filled], lambda stack: stack.mean(1))]
    together = torch._foreach_add(torch._foreach_add([e[i] for i in filled], means), more) if filled else []
    return found | {layers[i]: own for i, own in zip(filled, together, strict=True)}


def orthogonality(factors: Iterable[tuple[torch.Tensor, torch.Tensor]], profile: str) -> torch.Tensor | None:
    """R of pairs A (r, in), B (out, r); None where no pair has a component.

    profile: "paper" sums ‖A Aᵀ − I‖² + ‖Bᵀ B − I‖² over the pairs; "released" is the mean over all A and B
    of ‖·‖, not squared, as AdaLoRA's code and IncreLoRA's have it.
    """
    filled = [(a, b) for a, b in factors if len(a)]
    if not filled:
        return None
    squares = _over_stacks([a for a, _ in filled], lambda stack: _off_identity(stack @ stack.mT))
    squares += _over_stacks([b for _, b in filled], lambda stack: _off_identity(stack.mT @ stack))
    together = torch.stack(squares)
    return together.sum() if profile == "paper" else together.sqrt().mean()


def _off_identity(grams: torch.Tensor) -> torch.Tensor:
    """‖G − I‖² (k,) of matrices G (k, r, r)."""
    eye = torch.eye(grams.shape[-1], dtype=grams.dtype, device=grams.device)
    return (grams - eye).square().sum((1, 2))


def _over_stacks(
    matrices: Sequence[torch.Tensor], compute: Callable[[torch.Tensor], torch.Tensor]
) -> list[torch.Tensor]:
    """What `compute` gives for each matrix, computed for all that have one shape together, as a stack (k, n, m)."""
    by_shape: dict[torch.Size, list[int]] = {}
    for i, matrix in enumerate(matrices):
        by_shape.setdefault(matrix.shape, []).append(i)
    found: dict[int, torch.Tensor] = {}
    for places in by_shape.values():
        found |= zip(places, compute(torch.stack([matrices[i] for i in places])).unbind(), strict=True)
    return [found[i] for i in range(len(matrices))]
