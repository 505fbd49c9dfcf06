"""Low-rank components that are switched off by a zero and may come back, until they are removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from variants.core.adapters.adapter import LowRank


class Sieved(LowRank):
    """ΔW = scale · B diag(e) A; its rank is the number of e that are not zero.

    sieved: whether a zero means that a component is switched off. Until then, as where e starts at zero, all count.
    """

    counts_rank_on_device = True  # the optimizer revives an e that was set to zero
    e: nn.Parameter

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float) -> None:
        super().__init__(base, rank, scale, dropout, diagonal=True)
        self.sieved = False

    def rank_source(self) -> torch.Tensor | None:
        return self.e

    def rank_from(self, source: np.ndarray) -> int:
        return int(np.count_nonzero(source)) if self.sieved else len(source)

    @property
    def rank(self) -> int:
        return self.rank_from(self.e.detach().cpu().numpy())

    def closed_form(self) -> int:
        return self.A.shape[0] * self.cost

    def effective_parameters(self) -> int:
        return self.rank * self.cost

    def effective_from(self, source: np.ndarray) -> int:
        return self.rank_from(source) * self.cost

    @torch.no_grad()
    def switch_off(self, kept: torch.Tensor) -> None:
        """Set the e outside `kept` (r,), bool, to zero."""
        self.e.masked_fill_(~kept, 0.0)
        self.sieved = True


def remove_others(
    adapters: Mapping[str, Sieved], kept: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer | None
) -> dict[str, torch.Tensor]:
    """Free the components outside `kept`, a bool mask (r,) of each adapter; return the indices of the others by name.

    The masks are read in one transfer.
    """
    flags, start, left = torch.cat(list(kept)).tolist(), 0, {}
    for (name, adapter), mask in zip(adapters.items(), kept, strict=True):
        of_layer = flags[start : start + len(mask)]
        start += len(mask)
        left[name] = torch.tensor([i for i, flag in enumerate(of_layer) if flag], dtype=torch.int64, device=mask.device)
        if not all(of_layer):
            adapter.keep(left[name], optimizer)
    return left


__all__ = ["Sieved", "remove_others"]
