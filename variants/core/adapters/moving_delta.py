"""A sparse update whose entries move to other indices, by gradients that are collected at candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from variants.core import collectives
from variants.core.adapters.sparse_delta import SparseDelta


@dataclass
class Estimate:
    """Gradients of the candidates: their indices (k,), sums (k,) and sums of squares (k,).

    samples: number of gradients in the sums. steps: number of steps that these come from.
    """

    indices: torch.Tensor
    total: torch.Tensor
    squares: torch.Tensor
    samples: int = 0
    steps: int = 0

    @classmethod
    def empty(cls, indices: torch.Tensor, like: torch.Tensor) -> Estimate:
        zeros = torch.zeros(len(indices), dtype=like.dtype, device=like.device)
        return cls(indices, zeros, zeros)

    def state_dict(self) -> dict[str, Any]:
        return {"places" if name == "indices" else name: value for name, value in vars(self).items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> Estimate:
        indices, total, squares = (state[key].to(device) for key in ("places", "total", "squares"))
        return cls(indices, total, squares, state["samples"], state["steps"])

    def add(self, total: torch.Tensor, squares: torch.Tensor, samples: int) -> None:
        self.total, self.squares = self.total + total, self.squares + squares
        self.samples += samples


class MovingDelta(SparseDelta):
    """A sparse update whose entries move; it has their ages (nnz,) and gradient estimates of the candidates.

    estimate: of the finished steps of a collection. fresh: of the current step, batch by batch.
    present: (nnz,) gradients at the entries themselves in the current step.
    """

    def __init__(self, base: nn.Module, indices: torch.Tensor) -> None:
        super().__init__(base, indices)
        self.ages = torch.zeros_like(self.indices)
        self.estimate: Estimate | None = None
        self.begin_step(watched=False)

    def begin_step(self, watched: bool) -> None:
        """Reset the sums of the current step."""
        self.watched = watched
        self.fresh: Estimate | None = None
        self.present = torch.zeros_like(self.values)

    def collect(self, gradient: torch.Tensor) -> None:
        flat = gradient.detach().flatten()
        if self.fresh is None:
            if self.estimate is not None:
                indices = self.estimate.indices
            else:
                # A step whose gradients are not finite is skipped later, so any candidates will do until then.
                size = collectives.all_reduce_sum(flat).abs().nan_to_num()
                indices = size.topk(len(self.values), sorted=False).indices
            self.fresh = Estimate.empty(indices, flat)
        gradients = collectives.all_reduce_sum(flat[self.fresh.indices])  # of the whole batch, before squaring
        self.fresh.add(gradients, gradients.square(), 1)
        self.present = self.present + flat[self.indices]
