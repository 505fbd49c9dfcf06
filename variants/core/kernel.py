"""The product that every method with factors computes: y = W x + b + s · B C A x̃, x̃ = x or x under dropout.

    n tokens, W: out×in and b     A: r×in     B: out×r     C: none, diagonal (r,) or (r, r)     s: a number

    forward   h = A x̃ᵀ, c = C h          y = x Wᵀ + b,   y += s cᵀ Bᵀ        into the base's own product
    backward  u = s Bᵀ ∂yᵀ, t = Cᵀ u     ∂x = ∂y W,      ∂x += (tᵀ A) ∘ mask into the base's own product
              ∂A = t x̃   ∂B = s (c ∂y)ᵀ  ∂C = u hᵀ (its diagonal)   ∂W = ∂yᵀ x where W is trained too

Beyond what the frozen layer needs, nothing of full size is made or added, and x (which the layer before keeps
anyway), h and dropout's random bits, two bytes an entry, are all that is saved. What has r rows and n columns, h, c, u
and t, lies so that the long side n runs through rows that lie together: written down as the linear layers that they
are, x Aᵀ costs 1.4 times and the gradients three to five times as much on a CPU.

`plain` is the same in ordinary operations: the reference. `use("plain")` makes it what `low_rank_linear` computes.
A sparse update has no factors: its product is in `variants.core.sparse_linear`.

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


def chosen() -> str:
    """What `use` has chosen."""
    return _kernel


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
    the others are scaled up (see `draw`). The result has the precision of the base layer's output.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        lower = torch.get_autocast_dtype(kind)
        x, weight = x.to(lower), weight.to(lower)
        bias = bias if bias is None else bias.to(lower)
    a, b = a.to(x.dtype), b.to(x.dtype)
    core = core if core is None else core.to(x.dtype)
    bits, least = None, 0
    if dropout:
        bits, least, up = draw(x, dropout)
        scale = scale * up
    if _kernel == "plain":
        return plain(x, weight, bias, a, b, core, scale, None if bits is None else bits >= least)
    return _LowRankLinear.apply(x, weight, bias, a, b, core, scale, bits, least)


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


def draw(x: torch.Tensor, dropout: float) -> tuple[torch.Tensor, int, float]:
    """(bits, least, up): dropout keeps the entries of x whose bits, int16 of x's shape, are ≥ least, scaled by up.

    Entries are kept independently with probability 1 − p, p being `dropout` rounded to 2⁻¹⁶; up is 1/(1 − p) of
    the rounded p, so that the mean is exact. Sixteen random bits decide an entry: a quarter of the draws that a
    float for each would take, from torch's own generator.
    """
    dropped = round(dropout * _LEVELS)
    count = x.numel()
    # All but the last of 2⁶⁴ values; `random_` would give that one too, but can't be compiled.
    words = torch.randint(-(2**63), 2**63 - 1, ((count + 3) // 4,), device=x.device)
    bits = words.view(torch.int16)[:count].view(x.shape)
    return bits, dropped - _LEVELS // 2, _LEVELS / (_LEVELS - dropped)


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
        bits: torch.Tensor | None,
        least: int,
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        h = a @ (flat if bits is None else _mask(bits, least, flat).mul_(flat)).t()
        y = flat @ weight.t() if bias is None else torch.addmm(bias, flat, weight.t())
        y.addmm_(_times(core, h).t(), b.t(), alpha=scale)
        _, need_weight, _, need_a, need_b, need_core, *_ = ctx.needs_input_grad
        ctx.scale, ctx.shape, ctx.least = scale, x.shape, least
        kept_x = x if need_weight or need_a else None  # with A frozen the input need not be kept
        ctx.save_for_backward(kept_x, weight, a, b, core, h if need_b or need_core else None, bits)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, a, b, core, h, bits = ctx.saved_tensors
        flat: Any = None if x is None else x.reshape(-1, x.shape[-1])
        need_x, need_weight, _, need_a, need_b, need_core, *_ = ctx.needs_input_grad
        g = grad.reshape(-1, grad.shape[-1])
        mask = None if bits is None or not (need_a or need_x) else _mask(bits, ctx.least, g)
        grad_x = grad_weight = grad_a = grad_b = grad_core = None
        if need_b:
            grad_b = (_times(core, h) @ g).mul_(ctx.scale).t()
        if need_x or need_a or need_core:
            u = (b.t() @ g.t()).mul_(ctx.scale)
            if need_core:
                grad_core = (u * h).sum(1) if core.ndim == 1 else u @ h.t()
            t = u if core is None else _times(core.t(), u)
        if need_x:
            grad_x = g @ weight
            if mask is None:
                grad_x.addmm_(t.t(), a)
            else:
                grad_x.addcmul_(t.t() @ a, mask)
            grad_x = grad_x.view(ctx.shape)
        if need_a:
            grad_a = t @ (flat if mask is None else mask.mul_(flat))
        if need_weight:
            grad_weight = g.t() @ flat
        return grad_x, grad_weight, None, grad_a, grad_b, grad_core, None, None, None


def _times(core: torch.Tensor | None, h: torch.Tensor) -> torch.Tensor:
    """C h, for h (r, n)."""
    if core is None:
        return h
    return core[:, None] * h if core.ndim == 1 else core @ h


def _mask(bits: torch.Tensor, least: int, like: torch.Tensor) -> torch.Tensor:
    """(n, in): 1 where an entry is kept, else 0, in the dtype of `like`.

    Compared straight into that dtype and multiplied with: a quarter of what a bool mask and `torch.where` take
    on a CPU, where neither runs through vector instructions.
    """
    mask = torch.empty(bits.shape, dtype=like.dtype, device=bits.device)
    return torch.ge(bits, least, out=mask).view(-1, bits.shape[-1])
