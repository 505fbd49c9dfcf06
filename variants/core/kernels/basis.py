"""The product of an update in a frozen basis, W x + U C Vh x + b, for large r: the full basis has r = min(in, out).

    n tokens, W: out×in     U: out×r, Vh: r×in, frozen     C: r×r, or (r,) for a diagonal     W' = W + U C Vh

    formed    forward   y = W' x + b
              backward  ∂x = ∂y W'      ∂C = Uᵀ (∂yᵀ x) Vhᵀ, of a diagonal C its diagonal alone
    through   forward   y = U D h + b,  h = Vh x          D = S + C, for a basis that gives W back: W = U S Vh
              backward  t = Uᵀ ∂yᵀ     ∂x = tᵀ D Vh       ∂D = t hᵀ, of a diagonal D its diagonal alone

The kernel `low_rank` multiplies every token with W, and with Vh, C and U, which is cheapest for small r. `formed` costs
as much as r tokens in each pass, independently of their number, and saves only x. `through` leaves out W's own products
and saves only h; it differs from W x by rounding even where C is zero. `cheapest` says which way takes least.

Above a base in lower precision and under autocast W' would lose the update to rounding: both ways are left out.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from variants.core.kernels import low_rank
from variants.core.kernels.low_rank import FUSED, Kernel

BESIDE, FORMED, THROUGH = "beside", "formed", "through"  # the base's product; "beside" is the kernel `low_rank`


def cheapest(tokens: int, out_features: int, in_features: int, core: torch.Tensor, whole: bool) -> str:
    """Return the way with the fewest multiplications in a forward and a backward pass. core: C.

    whole: whether the basis gives W back, and the result may differ from W x by rounding.
    """
    r = len(core)
    between = 0 if core.ndim == 1 else r * r
    base = 2 * tokens * out_features * in_features
    through = tokens * (2 * r * (out_features + in_features) + 3 * between)
    # W' in both passes, ∂yᵀ x, and ∂C from it.
    form = r * out_features * in_features + between * min(out_features, in_features)
    ways = {BESIDE: base + through, FORMED: base + 3 * form + tokens * out_features * in_features}
    if whole:
        ways[THROUGH] = through
    return min(ways, key=ways.__getitem__)


def basis_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    u: torch.Tensor,
    vh: torch.Tensor,
    core: torch.Tensor,
    scale: float = 1.0,
    kernel: Kernel = FUSED,
) -> torch.Tensor:
    """(W + scale · U C Vh) x + bias, for x (…, in) → (…, out).

    weight: (out, in), u: (out, r), vh: (r, in) and bias: (out,), all without gradient. core: C, (r, r) or (r,). All
    have the same dtype.
    """
    if kernel.name == "plain":
        return F.linear(x, low_rank.merged_weight(weight, vh, u, core, scale), bias)
    return _BasisLinear.apply(x, weight, bias, u, vh, core, scale)


class _BasisLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        u: torch.Tensor,
        vh: torch.Tensor,
        core: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        ctx.scale = scale
        ctx.save_for_backward(x if ctx.needs_input_grad[5] else None, weight, u, vh, core)
        y = F.linear(x, low_rank.merged_weight(weight, vh, u, core, scale), bias)
        return low_rank.as_output(y, y.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, u, vh, core = ctx.saved_tensors
        grad_x = grad_core = None
        if ctx.needs_input_grad[5]:
            whole = grad.reshape(-1, grad.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
            if core.ndim == 2:
                grad_core = (u.t() @ (whole @ vh.t())).mul_(ctx.scale)
            elif len(u) <= vh.shape[1]:
                grad_core = (whole @ vh.t()).mul_(u).sum(0).mul_(ctx.scale)
            else:
                grad_core = (u.t() @ whole).mul_(vh).sum(1).mul_(ctx.scale)
        if ctx.needs_input_grad[0]:
            grad_x = grad @ low_rank.merged_weight(weight, vh, u, core, ctx.scale)
        return grad_x, None, None, None, None, grad_core, None


def through_basis(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    u: torch.Tensor,
    vh: torch.Tensor,
    core: torch.Tensor,
    kernel: Kernel = FUSED,
) -> torch.Tensor:
    """U D Vh x + bias, for x (…, in) → (…, out). core: D, (r, r) or (r,); the rest as for `basis_linear`."""
    if kernel.name == "plain":
        h = F.linear(x, vh)
        return F.linear(h * core if core.ndim == 1 else F.linear(h, core), u, bias)
    y: torch.Tensor = _ThroughBasis.apply(x, bias, u, vh, core)
    return y


class _ThroughBasis(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, bias: torch.Tensor | None, u: torch.Tensor, vh: torch.Tensor, core: torch.Tensor
    ) -> torch.Tensor:
        h = x.reshape(-1, x.shape[-1]) @ vh.t()
        ctx.shape = x.shape
        ctx.save_for_backward(h if ctx.needs_input_grad[4] else None, u, vh, core)
        between = h * core if core.ndim == 1 else h @ core.t()
        y = between @ u.t() if bias is None else torch.addmm(bias, between, u.t())
        return low_rank.as_output(y, torch.Size([*x.shape[:-1], len(u)]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        h, u, vh, core = ctx.saved_tensors
        t = grad.reshape(-1, grad.shape[-1]) @ u
        grad_x = grad_core = None
        if ctx.needs_input_grad[4]:
            grad_core = h.mul(t).sum(0) if core.ndim == 1 else t.t() @ h
        if ctx.needs_input_grad[0]:
            grad_x = ((t.mul_(core) if core.ndim == 1 else t @ core) @ vh).view(ctx.shape)
        return grad_x, None, None, None, grad_core
