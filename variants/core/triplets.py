"""Triplets: updates with the shape of a singular value decomposition, AdaLoRA's and those of the methods after it.

    ΔW = s Σ_i e_i B_i A_i        A_i: 1×in, B_i: out×1 ~ N(0, 0.02²)    e_i: zero
    S_i = s(e_i) + mean_j s(A_ij) + mean_j s(B_ji)      score of a triplet, from the scores of its entries
    R(A, B): how far A Aᵀ and Bᵀ B are from the identity

Source: Zhang et al. 2023 (AdaLoRA, arXiv 2303.10512), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from variants.core.adapter import LowRank

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
    return {f"{name}.{part}": adapter.get_parameter(part) for name, adapter in filled.items() for part in PARTS}


def score(of_entry: Callable[[str], torch.Tensor], layer: str) -> torch.Tensor:
    """S (r,) of a layer's triplets; of_entry("layer.part") gives the scores of a parameter's entries."""
    a, b, e = (of_entry(f"{layer}.{part}") for part in PARTS)
    # A layer that has lost all its triplets has no column to take a mean of.
    return e + a.mean(1) + b.mean(0) if len(e) else e


def orthogonality(factors: Iterable[tuple[torch.Tensor, torch.Tensor]], profile: str) -> torch.Tensor | None:
    """R of pairs A (r, in), B (out, r); None where no pair has a component.

    profile: "paper" sums ‖A Aᵀ − I‖² + ‖Bᵀ B − I‖² over the pairs; "released" is the mean over all A and B
    of ‖·‖, not squared, as AdaLoRA's code and IncreLoRA's have it.
    """
    squares = []
    for a, b in factors:
        if len(a):
            eye = torch.eye(len(a), dtype=a.dtype, device=a.device)
            squares += [(a @ a.T - eye).square().sum(), (b.T @ b - eye).square().sum()]
    if not squares:
        return None
    together = torch.stack(squares)
    return together.sum() if profile == "paper" else together.sqrt().mean()
