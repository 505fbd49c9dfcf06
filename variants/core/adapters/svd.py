"""A matrix ΔW (out, in) as a product B A, A (r, in) and B (out, r): exactly, or as near as a rank allows.

By Eckart and Young (1936) the r leading singular triplets give the product of rank r that is nearest to ΔW in
the Frobenius norm; what they leave out is the root of the sum of the squares of the other singular values.

All of it is computed in float64, whatever ΔW was trained in: what goes out is rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

Product = tuple[torch.Tensor, torch.Tensor]  # A (r, in), B (out, r)


@dataclass(frozen=True)
class Spectrum:
    """ΔW = U diag(s) Vh. U: (out, n). s: (n,), falling. Vh: (n, in). All in float64.

    dtype: what ΔW was trained in, and goes out in. size: of what ΔW was computed from, ‖B‖ ‖A‖ or ‖ΔW‖.
    """

    U: torch.Tensor
    s: torch.Tensor
    Vh: torch.Tensor
    dtype: torch.dtype
    size: float

    @property
    def rank(self) -> int:
        """The numerical rank: the smallest r at which what is left out is nothing but rounding."""
        trained = 8 * torch.finfo(self.dtype).eps * self.norm
        decomposed = max(len(self.U), self.Vh.shape[1]) * torch.finfo(torch.float64).eps * self.size
        return int((self._tails() > max(trained, decomposed)).sum())

    @property
    def norm(self) -> float:
        """‖ΔW‖, Frobenius."""
        return size(self.s)

    def left_out(self, rank: int) -> float:
        """‖ΔW − B A‖ / ‖ΔW‖ at `rank`; 0 where ΔW is zero."""
        if rank >= len(self.s) or not self.norm:
            return 0.0
        return float(self._tails()[rank]) / self.norm

    def product(self, rank: int | None = None) -> Product:
        """The nearest product of `rank`, None for the numerical one; each factor has the roots of the values."""
        r = self.rank if rank is None else min(rank, self.rank)
        root = self.s[:r].sqrt()
        return (root[:, None] * self.Vh[:r]).to(self.dtype), (self.U[:, :r] * root).to(self.dtype)

    def _tails(self) -> torch.Tensor:
        """(n,): the norm of the singular values from each one on."""
        return self.s.square().flip(0).cumsum(0).flip(0).sqrt()


@torch.no_grad()
def of_matrix(delta: torch.Tensor) -> Spectrum:
    """The spectrum of a dense ΔW (out, in)."""
    u, s, vh = torch.linalg.svd(delta.double(), full_matrices=False)
    return Spectrum(u, s, vh, delta.dtype, size(delta))


@torch.no_grad()
def of_product(a: torch.Tensor, b: torch.Tensor) -> Spectrum:
    """The spectrum of B A, without ever forming it: A = (Q_a R_a)ᵀ and B = Q_b R_b, then R_b R_aᵀ is small."""
    q_a, r_a = torch.linalg.qr(a.double().T)
    q_b, r_b = torch.linalg.qr(b.double())
    u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return Spectrum(q_b @ u, s, vh @ q_a.T, a.dtype, size(b) * size(a))


@torch.no_grad()
def without_zeros(a: torch.Tensor, b: torch.Tensor) -> Product:
    """B A without the components of which one factor is zero."""
    acts = a.any(1) & b.any(0)
    return a[acts], b[:, acts]


def size(matrix: torch.Tensor) -> float:
    """The Frobenius norm, in float64."""
    return float(torch.linalg.vector_norm(matrix.detach().double()))
