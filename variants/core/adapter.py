"""An adapter: a module around one frozen layer, with a trainable update ΔW of its weight.

Most methods are one form with different parts frozen, initialised, pruned or grown:

    ΔW = scale · B · diag(e) · A          A: r×in   e: r   B: out×r

    x ──┬── W (frozen) ─────────────────────┬── y
        └── dropout ── A ── e ── B ── scale ┘
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn


class Adapter(nn.Module):
    """Wraps `base`, a frozen linear layer with weight (out, in).

    A subclass defines `update`, `delta_weight`, `rank` and `closed_form`.
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self._enabled = True
        self._original: torch.Tensor | None = None  # the weight before merging; there while merged

    @property
    def weight(self) -> torch.Tensor:
        """The base weight (out, in): for code that looks at a layer's weight, its dtype, its device."""
        return self.base.weight

    @property
    def merged(self) -> bool:
        return self._original is not None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (…, in) → (…, out) in x's dtype; W x + b + ΔW x."""
        y = self.base(x)
        if self.merged or not self._enabled:
            return y
        return y + self.update(x).to(y.dtype)

    def update(self, x: torch.Tensor) -> torch.Tensor:
        """ΔW applied to x: (…, in) → (…, out), without ever forming ΔW."""
        raise NotImplementedError(f"{type(self).__name__}.update")

    def delta_weight(self) -> torch.Tensor:
        """ΔW as a dense (out, in) matrix in the adapter's dtype, without dropout."""
        raise NotImplementedError(f"{type(self).__name__}.delta_weight")

    @property
    def rank(self) -> int:
        """The rank of ΔW in use: what its shape and its zeros allow."""
        raise NotImplementedError(f"{type(self).__name__}.rank")

    def closed_form(self) -> int:
        """Trainable parameters of this adapter, by formula."""
        raise NotImplementedError(f"{type(self).__name__}.closed_form")

    def effective_parameters(self) -> int:
        """Trainable parameters that still act on ΔW, counted by real shapes."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @torch.no_grad()
    def merge(self) -> None:
        """Adds ΔW to the base weight, rounded once to its dtype; the adapter then adds nothing."""
        if self.merged:
            raise RuntimeError("merge: already merged")
        # A copy, because subtracting ΔW again would not give back every bit.
        self._original = self.base.weight.detach().clone()
        delta = self.delta_weight()
        self.base.weight.copy_(self._original.to(delta.dtype) + delta)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Restores the base weight bit for bit."""
        if self._original is None:
            raise RuntimeError("unmerge: not merged")
        self.base.weight.copy_(self._original)
        self._original = None

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """Within it the layer computes W x + b with the base weight."""
        was_merged, was_enabled = self.merged, self._enabled
        if was_merged:
            self.unmerge()
        self._enabled = False
        try:
            yield
        finally:
            self._enabled = was_enabled
            if was_merged:
                self.merge()


class LowRank(Adapter):
    """ΔW = scale · B A, with A (r, in) and B (out, r) trained; B starts at zero, so ΔW does too.

    rank: 1 … min(in, out). scale: a plain number. dropout: share of the adapter's input that
    is zeroed in training. dtype: of A and B; float32 above a half-precision base.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base)
        out_features, in_features = base.weight.shape
        check_rank(rank, out_features, in_features)
        dtype = torch.promote_types(base.weight.dtype, torch.float32)
        device = base.weight.device
        self.A = nn.Parameter(torch.empty(rank, in_features, device=device, dtype=dtype))
        self.B = nn.Parameter(torch.zeros(out_features, rank, device=device, dtype=dtype))
        nn.init.kaiming_uniform_(self.A, a=5**0.5)
        self.scale = scale
        self.dropout = dropout

    def update(self, x: torch.Tensor) -> torch.Tensor:
        x = F.dropout(x.to(self.A.dtype), self.dropout, self.training)
        return F.linear(F.linear(x, self.A), self.B * self.scale)

    def delta_weight(self) -> torch.Tensor:
        return self.scale * self.B @ self.A

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    def closed_form(self) -> int:
        out_features, in_features = self.base.weight.shape
        return self.rank * (in_features + out_features)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scale={self.scale:g}, dropout={self.dropout:g}"


def check_rank(rank: int, out_features: int, in_features: int) -> None:
    """Raises `ValueError` for a rank that a layer of this size can't have."""
    largest = min(in_features, out_features)
    if rank > largest:
        raise ValueError(f"rank: {rank} for a layer of size {out_features}×{in_features}, allowed: 1 … {largest}")
