"""The product of a layer with a sparse update: y = (W + s Δ) x + b, with Δ given by its entries.

    n tokens, W and Δ: out×in     Δ[i_k, j_k] = v_k, k = 1 … nnz

    forward   y = x (W + s Δ)ᵀ + b
    backward  ∂x = ∂y (W + s Δ)
              ∂v_k = s Σ_n ∂y[n, i_k] x[n, j_k]       only at the entries, or taken from ∂yᵀ x if there are many

W + s Δ is a copy of W that is formed in each pass. Only x is saved, which the previous layer saves anyway. Autograd
would save W + s Δ of every layer until the backward pass, and compute all of ∂yᵀ x.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from variants.core.kernels import low_rank
from variants.core.kernels.low_rank import FUSED, Kernel

# The only operation used here, `sampled_addmm`, is compared with the dense product in the tests.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)

# Above a tenth of the entries the dense product is faster: measured at widths 384 and 1536.
_MANY = 0.1
# Tokens whose x and ∂y stay in a core's cache while entries all over them are read.
_ROWS = 512


class Entries:
    """Indices (nnz,) in the flattened matrix (out, in), and the same in compressed sparse row format."""

    def __init__(self, indices: torch.Tensor, shape: tuple[int, int]) -> None:
        self.indices, self.shape = indices, shape
        self.few = len(indices) <= _MANY * shape[0] * shape[1]
        ordered, self._order = indices.sort()
        starts = torch.arange(shape[0] + 1, device=indices.device) * shape[1]
        self._rows, self._columns = torch.searchsorted(ordered, starts), ordered % shape[1]

    @functools.cached_property
    def transposed(self) -> torch.Tensor:
        """The indices in the flattened transpose (in, out)."""
        return self.indices % self.shape[1] * self.shape[0] + self.indices // self.shape[1]

    def gradient(self, g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return Σ_n g[n, i_k] x[n, j_k], (nnz,), for g (n, out) and x (n, in)."""
        if not self.few or g.dtype.itemsize < 4:
            return (g.t() @ x).flatten()[self.indices]
        sums = g.new_zeros(len(self.indices))
        for some_g, some_x in zip(g.split(_ROWS), x.split(_ROWS), strict=True):
            so_far = torch.sparse_csr_tensor(self._rows, self._columns, sums, self.shape, check_invariants=False)
            sums = torch.sparse.sampled_addmm(so_far, some_g.t(), some_x).values()
        return torch.empty_like(sums).index_copy_(0, self._order, sums)


def sparse_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    values: torch.Tensor,
    entries: Entries,
    scale: float = 1.0,
    kernel: Kernel = FUSED,
) -> torch.Tensor:
    """(W + scale · Δ) x + bias, for x (…, in) → (…, out), with Δ `values` (nnz,) at `entries`.

    weight: (out, in), in the dtype of the values; weight and bias: (out,) get no gradient. Under autocast the sum
    W + scale · Δ is rounded once to the lower precision.
    """
    kind, dtype = x.device.type, weight.dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, bias = x.to(dtype), bias if bias is None else bias.to(dtype)
    if kernel.name == "plain":
        return F.linear(x, _merged_weight(weight, values, entries, scale, dtype), bias)
    return _SparseLinear.apply(x, weight, bias, values, entries, scale, dtype)


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        values: torch.Tensor,
        entries: Entries,
        scale: float,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        ctx.entries, ctx.scale, ctx.dtype = entries, scale, dtype
        ctx.save_for_backward(x if ctx.needs_input_grad[3] else None, weight, values)
        y = F.linear(x, _merged_weight(weight, values, entries, scale, dtype), bias)
        return low_rank.as_output(y, y.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, values = ctx.saved_tensors
        grad_x = grad_values = None
        if ctx.needs_input_grad[3]:
            rows = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
            grad_values = ctx.entries.gradient(*rows).to(values.dtype).mul_(ctx.scale)
        if ctx.needs_input_grad[0]:
            grad_x = grad @ _merged_weight(weight, values, ctx.entries, ctx.scale, ctx.dtype)
        return grad_x, None, None, grad_values, None, None, None


def _merged_weight(
    weight: torch.Tensor, values: torch.Tensor, entries: Entries, scale: float, dtype: torch.dtype
) -> torch.Tensor:
    """Return W + scale · Δ (out, in) in W's memory layout, so that without values the product is the layer's bits."""
    transposed = not weight.is_contiguous()  # transformers' Conv1D keeps the transpose
    stored = weight.t() if transposed else weight
    flat = stored.flatten().index_add(0, entries.transposed if transposed else entries.indices, values, alpha=scale)
    merged = flat.view(stored.shape).to(dtype)
    return merged.t() if transposed else merged
