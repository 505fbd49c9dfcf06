"""A sparse update: `values` (nnz,) at `indices` (nnz,), never a dense parameter with zeros.

    y = (W + ΔW) x        ΔW[indices] = scale · values, row by row in the matrix (out, in)

Above a base in the values' own precision there is one product, with W + ΔW; above a half-precision base,
where that sum would be rounded away, ΔW x is computed in float32 and added. Values, gradients and
the optimizer's moments have nnz entries; ΔW is formed within a forward pass only.
"""

from __future__ import annotations

import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import structural_rank
from torch import nn
from torch.func import functional_call

from variants.core.adapter import Adapter


class SparseDelta(Adapter):
    """ΔW with trained `values` at `indices`, which start at zero.

    indices: (nnz,) int64, places in the flattened matrix (out, in). scale: of the values.
    watched: whether the gradient of ΔW as a whole is wanted; it is summed up in `gradient` (out, in).
    """

    indices: torch.Tensor

    def __init__(self, base: nn.Module, indices: torch.Tensor, scale: float = 1.0) -> None:
        super().__init__(base)
        device, dtype = self.weight.device, torch.promote_types(self.weight.dtype, torch.float32)
        self.values = nn.Parameter(torch.zeros(len(indices), device=device, dtype=dtype))
        self.scale = scale
        self.watched = False
        self.gradient: torch.Tensor | None = None
        self.register_buffer("indices", indices.to(device), persistent=False)
        self.set_indices(indices)

    def set_indices(self, indices: torch.Tensor) -> None:
        """Moves the values, as many as before, to other places."""
        if len(indices) != len(self.values):
            raise ValueError(f"indices: {len(indices)}, allowed: {len(self.values)}, one for each value")
        self.indices = indices.to(self.weight.device)
        self._places: torch.Tensor | None = None  # the same in the layout of the layer's weight
        self._rank: int | None = None

    def _layout(self) -> torch.Tensor:
        """Where each entry of the matrix (out · in,) lies in the flattened weight."""
        count = self.out_features * self.in_features
        matrix = torch.arange(count, device=self.indices.device).view(self.out_features, self.in_features)
        order = self.form.as_weight(matrix).flatten()
        return torch.empty_like(order).index_put((order,), torch.arange(count, device=order.device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.merged or not self._enabled or self.is_empty or self.weight.dtype != self.values.dtype:
            return super().forward(x)
        if self._places is None:
            self._places = self._layout()[self.indices]
        weight = self.weight.flatten().index_add(0, self._places, self.values * self.scale).view_as(self.weight)
        if self.watched and weight.requires_grad:
            weight.register_hook(self._collect_weight)
        return functional_call(self.base, {"weight": weight}, (x,))

    def update(self, x: torch.Tensor) -> torch.Tensor:
        matrix = self.delta()
        if self.watched and matrix.requires_grad:
            matrix.register_hook(self._collect)
        return self.form.project(x.to(matrix.dtype) if x.is_floating_point() else x, matrix)

    def _collect_weight(self, gradient: torch.Tensor) -> None:
        self._collect(gradient.flatten()[self._layout()].view(self.out_features, self.in_features))

    def _collect(self, gradient: torch.Tensor) -> None:
        self.gradient = gradient if self.gradient is None else self.gradient + gradient

    def delta(self) -> torch.Tensor:
        flat = self.values.new_zeros(self.out_features * self.in_features)
        return flat.index_add(0, self.indices, self.values * self.scale).view(self.out_features, self.in_features)

    @property
    def is_empty(self) -> bool:
        return len(self.values) == 0

    @property
    def rank(self) -> int:
        """The rank that the places allow: that of a matrix with numbers of no pattern in them."""
        if self._rank is None:
            rows, columns = self.indices.cpu() // self.in_features, self.indices.cpu() % self.in_features
            shape = (self.out_features, self.in_features)
            pattern = coo_matrix((torch.ones(len(rows)).numpy(), (rows.numpy(), columns.numpy())), shape=shape)
            self._rank = int(structural_rank(pattern.tocsr())) if len(rows) else 0
        return self._rank

    def closed_form(self) -> int:
        return len(self.values)

    def extra_repr(self) -> str:
        return f"entries={len(self.values)} of {self.out_features * self.in_features}, scale={self.scale:g}"


def largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Places (count,) of the largest of `scores` (flattened), in rising order. Ties go to the first.

    Raises `ValueError` where a score is not finite.
    """
    flat = scores.detach().flatten()
    if not bool(torch.isfinite(flat).all()):
        raise ValueError("mask: a score is not finite")
    return flat.argsort(descending=True, stable=True)[:count].sort().values
