"""Triplets under a mask: masked ones keep training and may return, until they are removed."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from variants.core.adapters.svd_triplets import Triplets


class MaskedTriplets(Triplets):
    """Triplets that can be masked: `kept` (r,) are those inside the mask.

    masks_evaluation: whether evaluation ignores masked components although their e is not zero.
    """

    kept: torch.Tensor

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float, masks_evaluation: bool) -> None:
        super().__init__(base, rank, scale, dropout)
        self.masks_evaluation = masks_evaluation
        self.register_buffer("kept", torch.ones(rank, dtype=torch.bool, device=self.e.device), persistent=False)
        self._kept_indices: list[int] | None = list(range(rank))

    @property
    def counts_rank_on_device(self) -> bool:  # type: ignore[override]
        # If evaluation ignores the mask, masked e that the optimizer moves act again.
        return not self.masks_evaluation

    def diagonal(self) -> torch.Tensor | None:
        return self.e if self.training or not self.masks_evaluation else self.e * self.kept

    @property
    def kept_indices(self) -> list[int]:
        """The indices of the components in `kept`."""
        if self._kept_indices is None:
            self._kept_indices = self.kept.nonzero().flatten().tolist()
        return self._kept_indices

    def mask(self, kept: torch.Tensor, kept_indices: list[int] | None) -> None:
        """Keep the components `kept` (r,) and set the other e to zero. kept_indices: the same, if the host has them."""
        self.kept.copy_(kept)
        self._kept_indices = kept_indices
        self.e.masked_fill_(~kept, 0.0)

    def set_kept(self, kept: torch.Tensor) -> None:
        """Resize to the saved mask `kept` (r,); the values of the components are loaded afterwards."""
        self.reshape(len(kept))
        self.kept, self._kept_indices = kept.to(self.e.device), None

    @property
    def rank(self) -> int:
        return len(self.kept_indices) if self.masks_evaluation else self.rank_from(self.e.detach().cpu().numpy())

    def rank_source(self) -> torch.Tensor | None:
        return None if self.masks_evaluation else self.e

    def rank_from(self, source: np.ndarray) -> int:
        return int(np.count_nonzero(source)) or len(source)  # all are zero at the start

    def closed_form(self) -> int:
        return self.A.shape[0] * self.cost

    def effective_parameters(self) -> int:
        return self.rank * self.cost

    def effective_from(self, source: np.ndarray) -> int:
        return self.rank_from(source) * self.cost

    def keep(self, index: torch.Tensor, optimizer: torch.optim.Optimizer | None) -> None:
        super().keep(index, optimizer)
        self.kept, self._kept_indices = self.kept[index], None

    def remove_masked(self, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        """Free the masked components; return the indices (n,) of the others."""
        index = torch.tensor(self.kept_indices, dtype=torch.int64, device=self.e.device)
        self.keep(index, optimizer)
        self._kept_indices = list(range(len(index)))
        return index
