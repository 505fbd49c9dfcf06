"""The product of a layer with a low-rank update: y = W x + b + s · B C A x̃, where x̃ is x, or x after dropout.

    n tokens, W: out×in and b     A: r×in     B: out×r     C: none, diagonal (r,) or (r, r)     s: a number

              h = A x̃ᵀ,  c = C h,  u = s Bᵀ ∂yᵀ,  t = Cᵀ u      stored as r rows of length n

    forward   y = x Wᵀ + b,   y += s cᵀ Bᵀ                     added in place to the base's product
    backward  ∂x = ∂y W,      ∂x += (tᵀ A) ∘ mask
              ∂A = t x̃    ∂B = s (c ∂y)ᵀ    ∂C = u hᵀ (or its diagonal)    ∂W = ∂yᵀ x if W is trained too

    For many tokens, without dropout, each pass forms W′ = W + s B C A and does not save it:
    forward   y = x W′ᵀ + b       then ∂B and ∂C above with h from x
    backward  ∂x = ∂y W′

Low-rank products are memory-bound: accumulating into y or ∂x reads and writes a tensor of n rows, which no cache holds
if n is several times the number of features that the product sums over. Each pass chooses the cheaper way. No copy of
W is saved. W′ is not formed above a base in lower precision, where it would lose the update to rounding, nor with
dropout, where base and update have different inputs.

Beyond what the frozen layer saves, the only tensors of full size that are saved are x (which the previous layer saves
anyway) and dropout's random bits, two bytes an entry. With `recompute` the bits are drawn and h is computed again.

`plain` is the reference, in ordinary operations; a `Kernel` selects it. Sparse updates have no factors: see
`variants.core.kernels.sparse`.

Parameters in higher precision than the base (float32 above bfloat16, or under autocast) are cast to the base's
precision for the products, as autocast does; their gradients have the parameters' precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from variants.core.kernels import dropout as dropouts
from variants.core.kernels.dropout import Drawn

KERNELS = ("fused", "plain")
# On a CPU the time of a product with r rows depends on its layout (measured at r from 4 to 16 on two cores, with x
# partly in a cache as in a step). From _MANY tokens on, x Aᵀ takes half as long as A xᵀ if x is narrow. For wide x a
# batch of products of A with blocks of tokens takes four fifths, with thousands of tokens half. A sum over tokens takes
# two thirds if it is split in two, because threads divide the results and not the sum.
_MANY, _NARROW, _BLOCK = 256, 512, 64


@dataclass(frozen=True)
class Kernel:
    """How an adapter computes its product: "fused", or "plain" for ordinary operations.

    recompute: whether the fused kernel computes h and dropout's bits again in the backward pass instead of keeping
    them. Raises `ValueError` for another name.
    """

    name: str = "fused"
    recompute: bool = False

    def __post_init__(self) -> None:
        if self.name not in KERNELS:
            raise ValueError(f"kernel: {self.name!r}, allowed: {', '.join(KERNELS)}")


FUSED = Kernel()


def low_rank_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    core: torch.Tensor | None = None,
    scale: float = 1.0,
    dropout: float | Drawn = 0.0,
    kernel: Kernel = FUSED,
) -> torch.Tensor:
    """W x + bias + scale · B C A x̃, for x (…, in) → (…, out).

    weight: (out, in). bias: (out,), without gradient, or None. a: (r, in). b: (out, r). core: C, (r,) if diagonal,
    (r, r), or None for the identity. dropout: probability with which an entry of x is dropped from x̃ while the others
    are scaled up (see `dropout.py`), or a draw for x that was made already. The result has the precision of the base
    layer's output.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        lower = torch.get_autocast_dtype(kind)
        x, weight = x.to(lower), weight.to(lower)
        bias = bias if bias is None else bias.to(lower)
    a, b = a.to(x.dtype), b.to(x.dtype)
    core = core if core is None else core.to(x.dtype)
    source, least = None, 0
    if dropout:
        if not isinstance(dropout, Drawn):
            dropout = dropouts.draw(x, dropout, seed_alone=kernel.recompute)
        source, least, up = dropout
        scale = scale * up
    if kernel.name == "plain":
        keep = None if source is None else dropouts.bits(source, x.shape) >= least
        return plain(x, weight, bias, a, b, core, scale, keep)
    return _LowRankLinear.apply(x, weight, bias, a, b, core, scale, source, least, kernel.recompute)


def plain(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    core: torch.Tensor | None = None,
    scale: float = 1.0,
    keep: torch.Tensor | None = None,
) -> torch.Tensor:
    """The reference: the same product in ordinary operations. keep: bool mask (…, in) of x̃, or None."""
    h = F.linear(x if keep is None else torch.where(keep, x, 0.0), a)
    if core is not None:
        h = h * core if core.ndim == 1 else F.linear(h, core)
    return F.linear(x, weight, bias) + F.linear(h, b) * scale


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        core: torch.Tensor | None,
        scale: float,
        source: torch.Tensor | None,
        least: int,
        recompute: bool,
    ) -> torch.Tensor:
        _, need_weight, _, need_a, need_b, need_core, *_ = ctx.needs_input_grad
        shape = x.shape
        rows = x.reshape(-1, shape[-1])
        merged = source is None and _merging_pays(len(rows), weight)
        keep_x = need_weight or need_a  # if A is frozen, h is saved and x is not
        keep_h = (need_b or need_core) and not (keep_x and (merged or recompute))
        h: Any = None
        if keep_h or not merged:
            dropped = rows  # x̃
            if source is not None:
                dropped = dropouts.mask(source, least, shape, x.dtype).view_as(rows).mul_(rows)
            h = _project(a, dropped)
        if merged:
            weight_merged = merged_weight(weight, a, b, core, scale)
            y = rows @ weight_merged.t() if bias is None else torch.addmm(bias, rows, weight_merged.t())
        else:
            y = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
            y.addmm_(_times(core, h).t(), b.t(), alpha=scale)
        ctx.scale, ctx.shape, ctx.least = scale, shape, least
        ctx.save_for_backward(x if keep_x else None, weight, a, b, core, h if keep_h else None, source)
        return as_output(y, torch.Size([*shape[:-1], y.shape[-1]]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, a, b, core, h, source = ctx.saved_tensors
        need_x, need_weight, _, need_a, need_b, need_core, *_ = ctx.needs_input_grad
        g = grad.reshape(-1, grad.shape[-1])
        rows: Any = None if x is None else x.reshape(-1, x.shape[-1])
        grad_x = grad_weight = grad_a = grad_b = grad_core = mask = None
        if source is not None and (need_x or rows is not None):
            mask = dropouts.mask(source, ctx.least, ctx.shape, g.dtype).view(-1, ctx.shape[-1])
        if need_x or need_a or need_core:
            u = _project(b.t(), g).mul_(ctx.scale)
            t = u if core is None else _times(core.t(), u)
        if need_x:
            if source is None and _merging_pays(len(g), weight.t()):
                grad_x = g @ merged_weight(weight, a, b, core, ctx.scale)
            elif mask is None:
                grad_x = (g @ weight).addmm_(t.t(), a)
            else:
                grad_x = (g @ weight).addcmul_(t.t() @ a, mask)
            grad_x = grad_x.view(ctx.shape)
        dropped = rows if mask is None or rows is None else mask.mul_(rows)  # x̃
        if h is None and (need_b or need_core):
            h = _project(a, dropped)
        if need_a:
            grad_a = _sum_over_tokens(t, dropped)
        if need_b:
            grad_b = _sum_over_tokens(_times(core, h), g).mul_(ctx.scale).t()
        if need_core:
            grad_core = (u * h).sum(1) if core.ndim == 1 else u @ h.t()
        if need_weight:
            grad_weight = g.t() @ rows
        return grad_x, grad_weight, None, grad_a, grad_b, grad_core, None, None, None, None


def as_output(y: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return y in `shape`, without a copy and not as a view to autograd.

    Models may change a layer's output in place, which autograd forbids for a view that a custom function returns.
    """
    reshaped: torch.Tensor = torch.ops.aten._unsafe_view(y, list(shape))
    return reshaped


def _merging_pays(tokens: int, weight: torch.Tensor) -> bool:
    """Whether a product of `tokens` rows with W (results, summed) is faster with W′ than with the update added to it.

    W′ is written once and read once: twice its size. 2¹⁸ numbers (1 MiB) of the result stay in caches. Measured at
    widths 384 to 3072 on two cores; between cores without a shared cache W′ costs up to four times as much.
    """
    results, summed = weight.shape
    return weight.dtype.itemsize >= 4 and tokens * results > 2 * results * summed + 2**18


def merged_weight(
    weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, core: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Return W + scale · B C A (out, in) in W's memory layout, so that products are the layer's bits if B C is zero."""
    if core is not None and len(b) <= a.shape[1]:  # multiply C into the smaller factor
        b = b * core if core.ndim == 1 else b @ core
    elif core is not None:
        a = _times(core, a)
    if weight.is_contiguous():
        return torch.addmm(weight, b, a, alpha=scale)
    return torch.addmm(weight.t(), a.t(), b.t(), alpha=scale).t()  # transformers' Conv1D keeps the transpose


def _times(core: torch.Tensor | None, h: torch.Tensor) -> torch.Tensor:
    """Return C h, for h (r, n)."""
    if core is None:
        return h
    return core[:, None] * h if core.ndim == 1 else core @ h


def _project(a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return A xᵀ (r, n), for A (r, f) and x (n, f)."""
    tokens, width = x.shape
    if x.device.type == "cpu" and width <= _NARROW and tokens >= _MANY:
        return (x @ a.contiguous().t()).t()
    blocks, over = divmod(tokens, _BLOCK)
    if x.device.type == "cpu" and width > _NARROW and blocks > 1 and not over:
        products = torch.bmm(a.expand(blocks, -1, -1), x.view(blocks, _BLOCK, width).transpose(1, 2))
        return products.transpose(1, 2).reshape(tokens, -1).t()
    return a @ x.t()


def _sum_over_tokens(h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return h x (r, f), for h (r, n) and x (n, f)."""
    half, odd = divmod(len(x), 2)
    if odd or len(x) < _MANY or x.device.type != "cpu":
        return h @ x
    return torch.bmm(h.view(-1, 2, half).transpose(0, 1), x.view(2, half, -1)).sum(0)
