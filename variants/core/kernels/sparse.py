"""The product that every method with a sparse update computes: y = (W + s Δ) x + b, Δ nothing but its entries.

    n tokens, W and Δ: out×in     Δ[i_k, j_k] = v_k, k = 1 … nnz

    forward   y = x (W + s Δ)ᵀ + b
    backward  ∂x = ∂y (W + s Δ)
              ∂v_k = s Σ_n ∂y[n, i_k] x[n, j_k]       at the entries alone, or picked out of ∂yᵀ x where there are many

W + s Δ is made anew in either pass, a copy of W: what is saved is x, which the layer before keeps anyway. Autograd,
given W + s Δ as a tensor, would keep one for each layer until the backward pass, and computes all of ∂yᵀ x.
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

# What is used of it here, `sampled_addmm`, is compared with the dense product in the tests.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)

# A tenth of the entries costs as much one by one as the whole product does: measured at widths 384 and 1536.
_MANY = 0.1
# Tokens whose x and ∂y stay in a core's cache while entries are read from all over them.
_ROWS = 512


class Entries:
    """Places (nnz,) in the flattened matrix (out, in), and the same as rows of a compressed sparse matrix."""

    def __init__(self, places: torch.Tensor, shape: tuple[int, int]) -> None:
        self.places, self.shape = places, shape
        self.few = len(places) <= _MANY * shape[0] * shape[1]
        ordered, self._order = places.sort()
        starts = torch.arange(shape[0] + 1, device=places.device) * shape[1]
        self._rows, self._columns = torch.searchsorted(ordered, starts), ordered % shape[1]

    @functools.cached_property
    def across(self) -> torch.Tensor:
        """The places in the flattened transpose (in, out)."""
        return self.places % self.shape[1] * self.shape[0] + self.places // self.shape[1]

    def gradient(self, g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Σ_n g[n, i_k] x[n, j_k], (nnz,), of g (n, out) and x (n, in)."""
        if not self.few or g.dtype.itemsize < 4:
            return (g.t() @ x).flatten()[self.places]
        found = g.new_zeros(len(self.places))
        for some_g, some_x in zip(g.split(_ROWS), x.split(_ROWS), strict=True):
            into = torch.sparse_csr_tensor(self._rows, self._columns, found, self.shape, check_invariants=False)
            found = torch.sparse.sampled_addmm(into, some_g.t(), some_x).values()
        return torch.empty_like(found).index_copy_(0, self._order, found)


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

    weight: (out, in), in the dtype of the values; it and bias: (out,) take no gradient. Under autocast the sum
    W + scale · Δ is rounded to the lower precision, once.
    """
    kind, dtype = x.device.type, weight.dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, bias = x.to(dtype), bias if bias is None else bias.to(dtype)
    if kernel.name == "plain":
        return F.linear(x, _joined(weight, values, entries, scale, dtype), bias)
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
        y = F.linear(x, _joined(weight, values, entries, scale, dtype), bias)
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
            grad_x = grad @ _joined(weight, values, ctx.entries, ctx.scale, ctx.dtype)
        return grad_x, None, None, grad_values, None, None, None


def _joined(
    weight: torch.Tensor, values: torch.Tensor, entries: Entries, scale: float, dtype: torch.dtype
) -> torch.Tensor:
    """W + scale · Δ (out, in), laid out as W is: then without values in it the product is the layer's bit for bit."""
    across = not weight.is_contiguous()  # transformers' Conv1D keeps the transpose
    stored = weight.t() if across else weight
    flat = stored.flatten().index_add(0, entries.across if across else entries.places, values, alpha=scale)
    joined = flat.view(stored.shape).to(dtype)
    return joined.t() if across else joined
