"""The product that every method with factors computes: y = W x + b + s · B C A x̃, x̃ = x or x under dropout.

    n tokens, W: out×in and b     A: r×in     B: out×r     C: none, diagonal (r,) or (r, r)     s: a number

              h = A x̃ᵀ,  c = C h,  u = s Bᵀ ∂yᵀ,  t = Cᵀ u      lie as r rows: the long side n runs through one row

    forward   y = x Wᵀ + b,   y += s cᵀ Bᵀ                     into the base's own product
    backward  ∂x = ∂y W,      ∂x += (tᵀ A) ∘ mask
              ∂A = t x̃    ∂B = s (c ∂y)ᵀ    ∂C = u hᵀ (or its diagonal)    ∂W = ∂yᵀ x where W is trained too

    of many tokens, without dropout, W′ = W + s B C A is written in a pass and thrown away:
    forward   y = x W′ᵀ + b       then ∂B and ∂C above with h from x
    backward  ∂x = ∂y W′

A thin product costs not its arithmetic but the way through a tensor of n rows, and to add to y or ∂x is to read and
write one that no cache holds once there are several times as many tokens as its product sums up features: each pass
chooses for itself. No copy of W is kept.
Above a base in lower precision W′ would round the update away, and under dropout the base sees another input than
the update.

Beyond what the frozen layer needs, nothing of full size is kept but x (which the layer before keeps anyway) and
dropout's random bits, two bytes an entry. With `recompute` these are drawn again, and h is computed again from x.

`plain` is the same in ordinary operations: the reference. `low_rank_linear` computes with it if its `Kernel` says so.
A sparse update has no factors: its product is in `variants.core.kernels.sparse`.

Parameters above a base in lower precision (float32 above bfloat16, or under autocast) enter the products in the
base's precision, as autocast has them; their gradients come back in their own.
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
# What a CPU's library, made for large results, makes of a product with r rows depends on its form (measured at r from 4
# to 16, x as in a step: partly in a cache). Of _MANY tokens and more, x Aᵀ takes half as long as A xᵀ if x is narrow;
# else a batch of products, each of A with a block of tokens, takes four fifths, and half where there are thousands. To
# sum over tokens takes two thirds in two halves, for results are divided among threads, not what is summed up.
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

    weight: (out, in). bias: (out,), which takes no gradient, or None. a: (r, in). b: (out, r). core: C, (r,) for a
    diagonal, (r, r), or None for the identity. dropout: probability with which an entry of x is left out of x̃, the
    others being scaled up (see `dropout.py`), or what was drawn for x already. The result has the precision of the base
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
    """The reference: the same in ordinary operations. keep: bool mask (…, in) of x̃, or None."""
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
        joined = source is None and _joins(len(rows), weight)
        keep_x = need_weight or need_a  # with A frozen the input need not be kept, but h
        keep_h = (need_b or need_core) and not (keep_x and (joined or recompute))
        h: Any = None
        if keep_h or not joined:
            seen = rows  # x̃
            if source is not None:
                seen = dropouts.mask(source, least, shape, x.dtype).view_as(rows).mul_(rows)
            h = _project(a, seen)
        if joined:
            weight_now = joined_weight(weight, a, b, core, scale)
            y = rows @ weight_now.t() if bias is None else torch.addmm(bias, rows, weight_now.t())
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
            if source is None and _joins(len(g), weight.t()):
                grad_x = g @ joined_weight(weight, a, b, core, ctx.scale)
            elif mask is None:
                grad_x = (g @ weight).addmm_(t.t(), a)
            else:
                grad_x = (g @ weight).addcmul_(t.t() @ a, mask)
            grad_x = grad_x.view(ctx.shape)
        seen = rows if mask is None or rows is None else mask.mul_(rows)  # x̃
        if h is None and (need_b or need_core):
            h = _project(a, seen)
        if need_a:
            grad_a = _over_rows(t, seen)
        if need_b:
            grad_b = _over_rows(_times(core, h), g).mul_(ctx.scale).t()
        if need_core:
            grad_core = (u * h).sum(1) if core.ndim == 1 else u @ h.t()
        if need_weight:
            grad_weight = g.t() @ rows
        return grad_x, grad_weight, None, grad_a, grad_b, grad_core, None, None, None, None


def as_output(y: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """y in `shape`, to be returned by a custom function: no copy, and yet no view to autograd.

    What such a function returns can be changed in place, as models do with a layer's output, only if it is no view.
    """
    found: torch.Tensor = torch.ops.aten._unsafe_view(y, list(shape))
    return found


def _joins(tokens: int, weight: torch.Tensor) -> bool:
    """Whether a product of so many tokens with W, here (to, summed), takes less with W′ than if the update is added.

    W′ is written and read, partly by another thread: counted as twice its numbers. Of what is added to, a MiB is at
    hand in caches. Measured at widths 384 to 3072; between two cores that lie far apart W′ costs up to four times that.
    """
    to, summed = weight.shape
    return weight.dtype.itemsize >= 4 and tokens * to > 2 * to * summed + 2**18


def joined_weight(
    weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, core: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """W + scale · B C A (out, in), laid out as W is: where B C is zero, products are the layer's to the bit."""
    if core is not None and len(b) <= a.shape[1]:  # into the factor that makes the smaller product
        b = b * core if core.ndim == 1 else b @ core
    elif core is not None:
        a = _times(core, a)
    if weight.is_contiguous():
        return torch.addmm(weight, b, a, alpha=scale)
    return torch.addmm(weight.t(), a.t(), b.t(), alpha=scale).t()  # transformers' Conv1D keeps the transpose


def _times(core: torch.Tensor | None, h: torch.Tensor) -> torch.Tensor:
    """C h, for h (r, n)."""
    if core is None:
        return h
    return core[:, None] * h if core.ndim == 1 else core @ h


def _project(a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A xᵀ (r, n), for A (r, f) and x (n, f)."""
    tokens, width = x.shape
    if x.device.type == "cpu" and width <= _NARROW and tokens >= _MANY:
        return (x @ a.contiguous().t()).t()
    blocks, over = divmod(tokens, _BLOCK)
    if x.device.type == "cpu" and width > _NARROW and blocks > 1 and not over:
        products = torch.bmm(a.expand(blocks, -1, -1), x.view(blocks, _BLOCK, width).transpose(1, 2))
        return products.transpose(1, 2).reshape(tokens, -1).t()
    return a @ x.t()


def _over_rows(h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """h x (r, f), for h (r, n) and x (n, f)."""
    half, odd = divmod(len(x), 2)
    if odd or len(x) < _MANY or x.device.type != "cpu":
        return h @ x
    return torch.bmm(h.view(-1, 2, half).transpose(0, 1), x.view(2, half, -1)).sum(0)
