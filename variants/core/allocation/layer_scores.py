"""Scores of layers from a weight and its gradient, or from singular values; `scores.py` measures during training.

| of the weight W and the mean gradient G (out, in), from a pass before training | |
|---|---|
| `product_mean` | mean of abs(W G) |
| `product_norm`, `product_nuclear` | Frobenius and nuclear norm of W ∘ G |
| `product_rows` | mean over rows of ‖W ∘ G‖ |
| `gradient_mean`, `gradient_norm`, `gradient_nuclear` | mean of abs(G), its Frobenius and its nuclear norm |
| `gradient_entropy` | entropy of a normal distribution with the standard deviation of G's entries |

| of the singular values e (r,) of an update, at any time | |
|---|---|
| `spectral_entropy` | −Σ p log(p + 1e-8) / log r, p = e²/Σ e²: 1 if all directions are equal |

Sources: He et al. 2025 (GoRA, arXiv 2502.12171) and its code; FlexLoRA 2026 (arXiv 2601.22905).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

BY_GRADIENT: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "product_mean": lambda w, g: (w * g).abs().mean(),
    "product_norm": lambda w, g: torch.linalg.matrix_norm(w * g),
    "product_rows": lambda w, g: (w * g).norm(dim=1).mean(),
    "product_nuclear": lambda w, g: torch.linalg.matrix_norm(w * g, "nuc"),
    "gradient_mean": lambda w, g: g.abs().mean(),
    "gradient_norm": lambda w, g: torch.linalg.matrix_norm(g),
    "gradient_nuclear": lambda w, g: torch.linalg.matrix_norm(g, "nuc"),
    "gradient_entropy": lambda w, g: g.std().clamp(min=1e-8).log() + 0.5 * (math.log(2 * math.pi) + 1),
}


def reads_weights(score: str) -> bool:
    """Whether a score of `BY_GRADIENT` is a function of W, too."""
    return score.startswith("product")


def spectral_entropy(e: torch.Tensor) -> torch.Tensor:
    """Return the spectral entropy (a scalar) of e (r,); it is not finite if all e are zero or r is 1."""
    p = e.square() / e.square().sum()
    return -(p * (p + 1e-8).log()).sum() / e.new_tensor(len(e)).log()


__all__ = ["BY_GRADIENT", "reads_weights", "spectral_entropy"]
