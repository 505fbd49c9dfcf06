"""A sparse update whose entries move on and leave behind what they have changed."""

from __future__ import annotations

import numpy as np
import torch

from variants.core.adapters import resize
from variants.core.adapters.sparse_delta import SparseDelta
from variants.core.kernels.sparse import sparse_linear


class DriftingDelta(SparseDelta):
    """ΔW = past + scatter(`values`): `values` at `indices` are trained now, `past` (out, in) was earlier.

    The change of an entry is in exactly one of the two. `past` is None until entries have moved. The scale is 1.
    """

    past: torch.Tensor | None

    def hold(self, indices: torch.Tensor) -> None:
        super().hold(indices)
        if "past" not in self._buffers:
            self.register_buffer("past", None, persistent=False)

    @torch.no_grad()
    def move(self, indices: torch.Tensor, optimizer: torch.optim.Optimizer | None, *, leave: bool = True) -> None:
        """Train the entries `indices` (n,), ascending, from now on.

        Those that stay keep value, gradient and moments; gradient and moments of new ones start at zero. leave: whether
        the others stay as they are; if not, they are zero again.
        """
        size = self.out_features * self.in_features
        past = self.drift()
        if leave:
            past.view(-1)[self.indices] = self.values.detach()
        resize.rearrange(self, "values", self.indices, indices, size, optimizer)
        if leave:
            self.values.copy_(past.view(-1)[indices])
            past.view(-1)[indices] = 0.0
            self.set_past(past)
        self.set_indices(indices)

    def drift(self) -> torch.Tensor:
        """Return a copy of `past`, (out, in)."""
        if self.past is not None:
            return self.past.clone()
        return self.values.new_zeros(self.out_features, self.in_features)

    def set_past(self, past: torch.Tensor | None) -> None:
        """Set `past` (out, in); None for zeros."""
        self.past = None if past is None else past.to(self.values.device, self.values.dtype)
        self._rank = None

    @property
    def _acts(self) -> bool:
        return self.past is not None or self.watched or super()._acts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kind = self.layer_kind
        if self.past is None or not kind.is_product or not self._uses_merged_weight or self.watched:
            return super().forward(x)
        matrix = kind.matrix + self.past
        return sparse_linear(x, matrix, kind.layer.bias, self.values, self.entries, self.scale, self.kernel)

    def merged_weight(self) -> torch.Tensor:
        weight = super().merged_weight()
        return weight if self.past is None else weight + self.layer_kind.as_weight(self.past)

    def dense(self) -> torch.Tensor:
        return super().dense() if self.past is None else super().dense() + self.past

    def changed(self) -> torch.Tensor:
        """Return the indices (n,) of all entries that are trained or were, ascending."""
        if self.past is None:
            return self.indices
        return torch.cat([self.indices, self.past.flatten().nonzero().flatten()]).unique()

    def rank_source(self) -> torch.Tensor | None:
        """Which entries have changed, (out · in,), until their rank has been computed."""
        if not self.settled or self._rank is not None:
            return None
        return (self.drift() != 0).flatten().index_fill(0, self.indices, True)

    def rank_from(self, source: np.ndarray) -> int:
        return self.structural_rank(np.flatnonzero(source))

    def structural_rank(self, indices: np.ndarray | None = None) -> int:
        if self._rank is None and indices is None:
            indices = self.changed().cpu().numpy()
        return super().structural_rank(indices)

    def entry_counts(self) -> tuple[int, int]:
        return len(self.changed()) if self.settled else 0, self.out_features * self.in_features

    def saved(self) -> dict[str, torch.Tensor]:
        """Return what places the entries: their indices, and the changes that earlier ones left behind."""
        past = {} if self.past is None else {"past": self.past}
        return {"indices": self.indices, **past}

    def take_up(self, saved: dict[str, torch.Tensor]) -> None:
        """Take up the result of `saved`; values of another number are created anew, and loaded afterwards."""
        if len(saved["indices"]) != len(self.values):
            self.hold(saved["indices"])
        self.set_past(saved.get("past"))
        self.set_indices(saved["indices"])


__all__ = ["DriftingDelta"]
