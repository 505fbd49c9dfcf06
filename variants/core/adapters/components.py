"""Components that are separate parameters, so that each can be added to the optimizer at its own time.

ΔW = scale · Σ λ_i B_i A_i        A_i: 1×in, B_i: out×1 ~ N(0, 0.02²)        λ_i: (1,)
"""

from __future__ import annotations

import torch
from torch import nn

from variants.core.adapters.adapter import Factored
from variants.core.adapters.svd_triplets import INIT_STD
from variants.core.kernels import dropout as dropouts
from variants.core.kernels.dropout import Drawn
from variants.core.kernels.low_rank import low_rank_linear


class Components(Factored):
    """ΔW = scale · Σ λ_i B_i A_i, with separate parameters for every component, so that each has its own moments.

    active: number of components that count as rank; those after them are the reserve.
    """

    def __init__(self, base: nn.Module, rank: int, dropout: float) -> None:
        super().__init__(base)
        self.set_dropout(dropout)
        self.scale = 1.0
        self.active = 0
        self.A, self.B, self.e = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        self.gradient: torch.Tensor | None = None  # ∂L/∂ΔW (out, in) in the current step
        self.watched = False  # whether to collect that gradient
        for _ in range(rank):
            self.add(0.0, trains_e=True)
        self.active = rank

    def add(self, value: float, trains_e: bool) -> list[nn.Parameter]:
        """Append one component with λ = value; return its trained parameters."""
        device, dtype = self.weight.device, torch.promote_types(self.weight.dtype, torch.float32)
        a = nn.Parameter(torch.empty(1, self.in_features, device=device, dtype=dtype).normal_(std=INIT_STD))
        b = nn.Parameter(torch.empty(self.out_features, 1, device=device, dtype=dtype).normal_(std=INIT_STD))
        e = nn.Parameter(torch.full((1,), value, device=device, dtype=dtype), requires_grad=trains_e)
        self.A.append(a), self.B.append(b), self.e.append(e)
        return [a, b, e] if trains_e else [a, b]

    def drop_reserve(self) -> list[nn.Parameter]:
        """Remove the components of the reserve; return their parameters."""
        removed: list[nn.Parameter] = []
        for name in ("A", "B", "e"):
            parameters = list(getattr(self, name))
            removed += parameters[self.active :]
            setattr(self, name, nn.ParameterList(parameters[: self.active]))
        return removed

    def factors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return A (n, in), B (out, n) and λ (n,), the reserve included."""
        # From the lists' own dictionaries: iterating over a ParameterList takes longer than the concatenation.
        a, b, e = (tuple(p for p in parts._parameters.values() if p is not None) for parts in (self.A, self.B, self.e))
        return torch.cat(a), torch.cat(b, 1), torch.cat(e)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (self.watched and self.training and self._enabled) or self.merged:
            return super().forward(x)
        drawn = self.draw(x, self.dropout) if self.dropout else None  # the score needs the same dropout mask
        if drawn is None:
            y = super().forward(x)
        elif self.layer_kind.is_product:
            a, b, core = self.factors()
            bias = self.layer_kind.layer.bias
            y = low_rank_linear(x, self.layer_kind.matrix, bias, a, b, core, self.scale, drawn, self.kernel)
        else:
            y = self.base.forward(x)
            y = y + self.apply_factors(dropouts.drop(x.to(self.A[0].dtype), drawn)).to(y.dtype)
        if y.requires_grad:
            y.register_hook(lambda gradient: self._collect(x, drawn, gradient))
        return y

    def _collect(self, x: torch.Tensor, drawn: Drawn | None, gradient: torch.Tensor) -> None:
        dtype = self.A[0].dtype
        x = x.detach().to(dtype) if x.is_floating_point() else x
        x = x if drawn is None else dropouts.drop(x, drawn)
        of_batch = self.layer_kind.gradient(x, gradient.to(dtype))
        self.gradient = of_batch if self.gradient is None else self.gradient + of_batch

    @property
    def rank(self) -> int:
        return self.active

    @property
    def cost(self) -> int:
        """Number of parameters of one rank."""
        return self.in_features + self.out_features + 1

    def closed_form(self) -> int:
        return self.active * self.cost

    def effective_parameters(self) -> int:
        return self.active * self.cost
