"""The product of an update in a frozen basis, W x + U C Vh x + b, with W + U C Vh formed.

    n tokens, W: out×in     U: out×r, Vh: r×in, frozen     C: r×r, or (r,) for a diagonal     W' = W + U C Vh

    forward   y = W' x + b
    backward  ∂x = ∂y W'      ∂C = Uᵀ (∂yᵀ x) Vhᵀ, of a diagonal C its diagonal alone

The kernel `low_rank` multiplies every token with Vh, C and U, which is cheaper for small r or few tokens. With the full
basis, r = min(in, out), that costs two to three times as much as W itself, while forming W' costs as much as r tokens,
independently of the number of tokens. `pays` says which way is cheaper.

W' is formed in each pass, and only x is saved. Above a base in lower precision and under autocast W' would lose the
update to rounding and is not formed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from variants.core.kernels import low_rank
from variants.core.kernels.low_rank import FUSED, Kernel


def pays(tokens: int, out_features: int, in_features: int, core: torch.Tensor) -> bool:
    """Whether forming W' takes fewer multiplications in a forward and a backward pass. core: C."""
    r = len(core)
    between = 0 if core.ndim == 1 else r * r
    through = tokens * (2 * r * (out_features + in_features) + 3 * between)
    # W' in both passes, ∂yᵀ x, and ∂C from it.
    form = r * out_features * in_features + between * min(out_features, in_features)
    formed = 3 * form + tokens * out_features * in_features
    return formed < through


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
