"""A matrix ΔW (out, in) as a product B A, A (r, in) and B (out, r): exact, or the best approximation of a rank.

By Eckart and Young (1936) the r leading singular triplets give the product of rank r that is closest to ΔW in the
Frobenius norm; its error is the root of the sum of squares of the other singular values.

Everything is computed in float64, whatever ΔW was trained in, so the result is rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

Product = tuple[torch.Tensor, torch.Tensor]  # A (r, in), B (out, r)


@dataclass(frozen=True)
class Spectrum:
    """ΔW = U diag(s) Vh. U: (out, n). s: (n,), descending. Vh: (n, in). All in float64.

    dtype: dtype in which ΔW was trained, and of exported factors. size: ‖B‖ ‖A‖ or ‖ΔW‖, from which ΔW was computed.
    """

    U: torch.Tensor
    s: torch.Tensor
    Vh: torch.Tensor
    dtype: torch.dtype
    size: float

    @property
    def rank(self) -> int:
        """The numerical rank: the smallest r whose error is only rounding."""
        trained = 8 * torch.finfo(self.dtype).eps * self.norm
        decomposed = max(len(self.U), self.Vh.shape[1]) * torch.finfo(torch.float64).eps * self.size
        return int((self._tails() > max(trained, decomposed)).sum())

    @property
    def norm(self) -> float:
        """‖ΔW‖, Frobenius."""
        return size(self.s)

    def left_out(self, rank: int) -> float:
        """Return ‖ΔW − B A‖ / ‖ΔW‖ at `rank`; 0 if ΔW is zero."""
        if rank >= len(self.s) or not self.norm:
            return 0.0
        return float(self._tails()[rank]) / self.norm

    def product(self, rank: int | None = None) -> Product:
        """Return the best A and B of `rank` (None: the numerical rank); each has the roots of the singular values."""
        r = self.rank if rank is None else min(rank, self.rank)
        root = self.s[:r].sqrt()
        return (root[:, None] * self.Vh[:r]).to(self.dtype), (self.U[:, :r] * root).to(self.dtype)

    def _tails(self) -> torch.Tensor:
        """Return (n,): the norm of each singular value and all after it."""
        return self.s.square().flip(0).cumsum(0).flip(0).sqrt()


@torch.no_grad()
def of_matrix(delta: torch.Tensor) -> Spectrum:
    """Return the spectrum of a dense ΔW (out, in)."""
    u, s, vh = torch.linalg.svd(delta.double(), full_matrices=False)
    return Spectrum(u, s, vh, delta.dtype, size(delta))


@torch.no_grad()
def of_product(a: torch.Tensor, b: torch.Tensor) -> Spectrum:
    """Return the spectrum of B A without forming it: with A = (Q_a R_a)ᵀ and B = Q_b R_b, R_b R_aᵀ is small."""
    q_a, r_a = torch.linalg.qr(a.double().T)
    q_b, r_b = torch.linalg.qr(b.double())
    u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return Spectrum(q_b @ u, s, vh @ q_a.T, a.dtype, size(b) * size(a))


@torch.no_grad()
def without_zeros(a: torch.Tensor, b: torch.Tensor) -> Product:
    """Return A and B without the components of which one factor is zero."""
    acts = a.any(1) & b.any(0)
    return a[acts], b[:, acts]


def size(matrix: torch.Tensor) -> float:
    """Return the Frobenius norm, in float64."""
    return float(torch.linalg.vector_norm(matrix.detach().double()))
