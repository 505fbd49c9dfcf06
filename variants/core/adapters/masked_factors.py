"""Low-rank factors under a mask: only the entries that the mask has left exist, as flat parameters.

ΔW = scale · B A        A: r×in, B: out×r, zero outside their masks
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from variants.core.adapters import resize
from variants.core.adapters.adapter import Factored

PARTS = ("A", "B")


class MaskedFactors(Factored):
    """ΔW = scale · B A with only the entries inside the masks: `A` and `B` are vectors (n,) of these entries' values.

    indices: (n,) of the entries in the flattened A (r, in) and B (out, r), by part. watched: whether to sum up the
    gradients of all entries, masked ones included, in `gradients`, by part.
    """

    def __init__(self, base: nn.Module, components: int, scale: float, dropout: float) -> None:
        super().__init__(base)
        self.set_dropout(dropout)
        device, dtype = self.weight.device, torch.promote_types(self.weight.dtype, torch.float32)
        a = torch.empty(components, self.in_features, device=device, dtype=dtype)
        nn.init.kaiming_uniform_(a, a=5**0.5)
        self.A = nn.Parameter(a.flatten())
        self.B = nn.Parameter(torch.zeros(self.out_features * components, device=device, dtype=dtype))
        self.shapes = {"A": (components, self.in_features), "B": (self.out_features, components)}
        self.indices = {part: torch.arange(math.prod(shape), device=device) for part, shape in self.shapes.items()}
        self.scale = scale
        self.watched = False
        self.gradients: dict[str, torch.Tensor] = {}
        self._rank: int | None = None

    def factor(self, part: str) -> torch.Tensor:
        """Return A (r, in) or B (out, r), with zeros outside the mask."""
        values, shape = self.get_parameter(part), self.shapes[part]
        if len(values) == math.prod(shape):
            dense = values.view(shape)
        else:
            dense = values.new_zeros(math.prod(shape)).scatter(0, self.indices[part], values).view(shape)
        if self.watched and dense.requires_grad:
            dense.register_hook(lambda gradient: self._collect(part, gradient))
        return dense

    def _collect(self, part: str, gradient: torch.Tensor) -> None:
        before, flat = self.gradients.get(part), gradient.flatten()
        self.gradients[part] = flat if before is None else before + flat

    def factors(self) -> tuple[torch.Tensor, torch.Tensor, None]:
        return self.factor("A"), self.factor("B"), None

    @property
    def is_empty(self) -> bool:
        return not len(self.A) or not len(self.B)

    @property
    def rank(self) -> int:
        """The rank of B A with generic values at the indices: what the masks allow."""
        if self.is_empty:
            return 0
        return self.rank_from(self._all_indices().cpu().numpy()) if self._rank is None else self._rank

    def rank_source(self) -> torch.Tensor | None:
        """The indices of A, then those of B, until the rank that they allow has been computed."""
        return self._all_indices() if self._rank is None and not self.is_empty else None

    def rank_from(self, source: np.ndarray) -> int:
        rng, factors = np.random.default_rng(0), []
        for shape, indices in zip(self.shapes.values(), np.split(source, [len(self.A)]), strict=True):
            factors.append(dense := np.zeros(shape))
            dense.flat[indices] = rng.standard_normal(len(indices))
        a, b = factors
        # B A has the rank of R_b R_aᵀ (r, r), where B = Q_b R_b and Aᵀ = Q_a R_a.
        small = np.linalg.qr(b, mode="r") @ np.transpose(np.linalg.qr(a.T, mode="r"))
        self._rank = int(np.linalg.matrix_rank(small))
        return self._rank

    def _all_indices(self) -> torch.Tensor:
        return torch.cat([self.indices["A"], self.indices["B"]])

    def closed_form(self) -> int:
        return len(self.A) + len(self.B)

    def entry_counts(self) -> tuple[int, int]:
        return len(self.A) + len(self.B), sum(map(math.prod, self.shapes.values()))

    def move(self, part: str, kept: torch.Tensor, new: torch.Tensor, optimizer: torch.optim.Optimizer | None) -> None:
        """Keep the entries `kept` (positions in the vector) and add zeros at the indices `new`, with their moments."""
        if len(kept) + len(new) == len(self.indices[part]):
            if len(new):
                resize.renew(self, part, kept, optimizer)
                self.indices[part] = torch.cat([self.indices[part][kept], new])
                self._rank = None
            return
        if len(kept) < len(self.indices[part]):
            resize.keep(self, part, kept, 0, optimizer)
            self.indices[part] = self.indices[part][kept]
        if len(new):
            resize.append(self, part, self.get_parameter(part).new_zeros(len(new)), 0, optimizer)
            self.indices[part] = torch.cat([self.indices[part], new])
        self._rank = None

    def load_indices(self, indices: Mapping[str, torch.Tensor]) -> None:
        """Set the masks to `indices`, by part; the values are loaded afterwards."""
        for part in PARTS:
            saved = indices[part].to(self.A.device)
            current = len(self.indices[part])
            self.move(part, torch.arange(min(current, len(saved)), device=saved.device), saved[current:], None)
            self.indices[part] = saved
        self._rank = None

    def extra_repr(self) -> str:
        return f"entries={self.closed_form()} of {sum(map(math.prod, self.shapes.values()))}, scale={self.scale:g}"
