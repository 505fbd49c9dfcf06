"""An update in a frozen basis that a decomposition of the weight has given: ΔW = U C Vh, with C trained.

`variants.core.decompositions` makes the basis, `variants.core.basis_variant` the methods that use it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from variants.core.adapters.adapter import Factored
from variants.core.decompositions import Factors
from variants.core.kernels.basis import FORMED, THROUGH, basis_linear, cheapest, through_basis


class InBasis(Factored):
    """ΔW = U C Vh in a frozen basis U (out, r), Vh (r, in); C is small and trained: `core`.

    x ──┬── W (frozen) ──────── y
        └── Vh ── C ── U ───────┘

    Checkpoints do not contain the basis: it is up to twice as large as W and is computed from W again, with the same
    bits on the same machine. On another machine it may differ by rounding; `BasisVariant` checks that it does not
    differ by more.

    In training W's own product is left out where the basis gives W back, U diag(s) Vh = W, and that is cheaper. In
    evaluation it is not, so that an untrained model's outputs are the base model's bit for bit.
    """

    U: torch.Tensor
    Vh: torch.Tensor
    values_of_base: torch.Tensor | None  # s, (r,); None if the basis is a part of W
    scale = 1.0
    counts_rank_on_device = True

    def __init__(self, base: nn.Module, factors: Factors) -> None:
        super().__init__(base)
        self.register_buffer("U", factors.U, persistent=False)
        self.register_buffer("Vh", factors.Vh, persistent=False)
        self.relative_error, self.explained = factors.relative_error, factors.explained
        gives_back = factors.relative_error < 100 * torch.finfo(factors.s.dtype).eps  # W, up to rounding
        self.register_buffer("values_of_base", factors.s if gives_back else None, persistent=False)

    def core(self) -> torch.Tensor:
        """Return C as it acts now: (r, r), or (r,) for a diagonal one."""
        raise NotImplementedError(f"{type(self).__name__}.core")

    def factors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.Vh, self.U, self.core()

    def product(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        one_dtype = x.dtype == weight.dtype == self.U.dtype and not torch.is_autocast_enabled(x.device.type)
        if self.dropout or not one_dtype:
            return super().product(x, weight)
        tokens, core, bias = x.numel() // self.in_features, self.core(), self.layer_kind.layer.bias
        whole = self.values_of_base if self.training and torch.is_grad_enabled() else None
        way = cheapest(tokens, self.out_features, self.in_features, core, whole is not None)
        if way == THROUGH and whole is not None:
            d = self.scale * core + (whole if core.ndim == 1 else torch.diag(whole))
            return through_basis(x, bias, self.U, self.Vh, d, self.kernel)
        if way == FORMED:
            return basis_linear(x, weight, bias, self.U, self.Vh, core, self.scale, self.kernel)
        return super().product(x, weight)

    @torch.no_grad()
    def rank_source(self) -> torch.Tensor | None:
        return self.core()

    def rank_from(self, source: np.ndarray) -> int:
        """Count the non-zero entries of a diagonal C; before the first step all are zero, and all count."""
        return int(np.count_nonzero(source)) or len(source)

    def closed_form(self) -> int:
        return self.U.shape[1]

    @torch.no_grad()
    def fingerprint(self) -> torch.Tensor:
        """Return two numbers (2,) in float64 that depend on every direction of the basis, signs included."""
        u, vh = self.U.double(), self.Vh.double()
        left, right = probe(len(u), u.device) @ u, vh @ probe(vh.shape[1], u.device)
        # Weighted, so that swapped directions change them too; divided by the norm, so that scale does not.
        weights = probe(len(left), u.device)
        return torch.stack([(weights * h).sum() / torch.linalg.vector_norm(h) for h in (left, right)]).cpu()

    def extra_repr(self) -> str:
        return f"directions={self.U.shape[1]}, explained={self.explained:.3f}"


def probe(n: int, device: torch.device) -> torch.Tensor:
    """Return n fixed numbers between −1 and 1 without a pattern that a weight could share."""
    return torch.cos(torch.arange(1, n + 1, dtype=torch.float64, device=device) ** 2)
