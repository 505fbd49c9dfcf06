"""The product that every method with factors computes: y = W x + b + s · B C A x̃, x̃ = x or x under dropout.

    n tokens, W: out×in and b     A: r×in     B: out×r     C: none, diagonal (r,) or (r, r)     s: a number

    forward   h = x̃ Aᵀ, c = h Cᵀ         y = x Wᵀ + b,   y += s c Bᵀ         into the base's own product
    backward  u = s ∂y B, t = u C        ∂x = ∂y W,      ∂x += (t A) ∘ mask  into the base's own product
              ∂A = tᵀ x̃   ∂B = s ∂yᵀ c   ∂C = uᵀ h (its diagonal)   ∂W = ∂yᵀ x where W is trained too

Beyond what the frozen layer needs, nothing of full size is made or added, and x (which the layer before keeps
anyway), h and the mask, a byte an entry, are all that is saved. The thin products are laid out so that the long
side n runs through rows that lie together: written down as the linear layers that they are, their gradients cost
three to five times as much on a CPU.

`plain` is the same in ordinary operations: the reference. `use("plain")` makes it what `low_rank_linear` computes.

Parameters above a base in lower precision (float32 above bfloat16, or under autocast) enter the products in the
base's precision, as autocast has them; their gradients come back in their own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

KERNELS = ("fused", "plain")
_LEVELS = 2**16

_kernel = "fused"


def use(kernel: str) -> None:
    """Chooses what `low_rank_linear` computes with from now on: "fused" or "plain"."""
    global _kernel
    if kernel not in KERNELS:
        raise ValueError(f"kernel: {kernel!r}, allowed: {', '.join(KERNELS)}")
    _kernel = kernel


def low_rank_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    core: torch.Tensor | None = None,
    scale: float = 1.0,
    dropout: float = 0.0,
) -> torch.Tensor:
    """W x + bias + scale · B C A x̃, for x (…, in) → (…, out).

    weight: (out, in). bias: (out,), which takes no gradient, or None. a: (r, in). b: (out, r). core: C, (r,) for a
    diagonal, (r, r), or None for the identity. dropout: probability with which an entry of x is left out of x̃;
    the others are scaled up (see `keep_mask`). The result has the precision of the base layer's output.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        lower = torch.get_autocast_dtype(kind)
        x, weight = x.to(lower), weight.to(lower)
        bias = bias if bias is None else bias.to(lower)
    a, b = a.to(x.dtype), b.to(x.dtype)
    core = core if core is None else core.to(x.dtype)
    keep = None
    if dropout:
        keep, up = keep_mask(x, dropout)
        scale = scale * up
    if _kernel == "plain":
        return plain(x, weight, bias, a, b, core, scale, keep)
    return _LowRankLinear.apply(x, weight, bias, a, b, core, scale, keep)


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


def keep_mask(x: torch.Tensor, dropout: float) -> tuple[torch.Tensor, float]:
    """(mask, up): which entries of x dropout keeps, bool of x's shape, and the factor that makes up for the rest.

    Entries are kept independently with probability 1 − p, p being `dropout` rounded to 2⁻¹⁶; the factor is
    1/(1 − p) of the rounded p, so that the mean is exact. Sixteen random bits decide an entry: a quarter of the
    draws that a float for each would take, from torch's own generator.
    """
    dropped = round(dropout * _LEVELS)
    count = x.numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64, device=x.device).random_(-(2**63), None)
    keep = bits.view(torch.int16)[:count] >= dropped - _LEVELS // 2
    return keep.view(x.shape), _LEVELS / (_LEVELS - dropped)


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
        keep: torch.Tensor | None,
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        h = _masked(flat, keep) @ a.t()
        y = flat @ weight.t() if bias is None else torch.addmm(bias, flat, weight.t())
        y.addmm_(_times(h, core), b.t().contiguous(), alpha=scale)
        _, need_weight, _, need_a, need_b, need_core, *_ = ctx.needs_input_grad
        ctx.scale, ctx.shape = scale, x.shape
        kept_x = x if need_weight or need_a else None  # with A frozen the input need not be kept
        ctx.save_for_backward(kept_x, weight, a, b, core, h if need_b or need_core else None, keep)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, a, b, core, h, keep = ctx.saved_tensors
        flat: Any = None if x is None else x.reshape(-1, x.shape[-1])
        need_x, need_weight, _, need_a, need_b, need_core, *_ = ctx.needs_input_grad
        g = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_weight = grad_a = grad_b = grad_core = None
        if need_b:
            grad_b = (_times(h, core).t() @ g).mul_(ctx.scale).t()
        if need_x or need_a or need_core:
            u = (b.t() @ g.t()).mul_(ctx.scale)  # (r, n)
            if need_core:
                grad_core = (u * h.t()).sum(1) if core.ndim == 1 else u @ h
            t = u if core is None else (u * core[:, None] if core.ndim == 1 else core.t() @ u)
        if need_a:
            grad_a = t @ _masked(flat, keep)
        if need_x:
            grad_x = g @ weight
            across = t.t().contiguous()
            if keep is None:
                grad_x.addmm_(across, a)
            else:
                grad_x.add_(_masked(across @ a, keep))
            grad_x = grad_x.view(ctx.shape)
        if need_weight:
            grad_weight = g.t() @ flat
        return grad_x, grad_weight, None, grad_a, grad_b, grad_core, None, None


def _times(h: torch.Tensor, core: torch.Tensor | None) -> torch.Tensor:
    """h Cᵀ, for h (n, r)."""
    if core is None:
        return h
    return h * core if core.ndim == 1 else h @ core.t()


def _masked(flat: Any, keep: torch.Tensor | None) -> Any:
    return flat if keep is None else torch.where(keep.view(flat.shape), flat, 0.0)
