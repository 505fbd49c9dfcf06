"""The score that measures losses: with each component switched off, and with it alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from variants.core.allocation.score import Adapters, Score, Values, register
from variants.core.passes import Passes


@register("ablation_loss")
@dataclass(kw_only=True)
class AblationLoss(Score):
    """L(without the component) − L(with the component alone, of all layers): L is the loss on the first steps' rows.

    Source: Liu et al. 2024 (ALoRA, arXiv 2403.16187), equation 6; the paper's rows are of the development set. It costs
    two forward passes for each component. batches: steps whose rows L is measured on. measured: losses so far.
    """

    batches: int = 1
    measured: int = field(init=False, repr=False, compare=False, default=0)
    _passes: Passes[Any] | None = field(init=False, repr=False, compare=False, default=None)
    _rows: list[Sequence[Any]] = field(init=False, repr=False, compare=False, default_factory=list)

    def hold_passes(self, passes: Passes[Any]) -> None:
        self._passes, self._rows = passes, list(passes.steps(self.batches))

    @torch.no_grad()
    def scores(self, adapters: Adapters) -> Values:
        columns = {name: adapter.B.detach().clone() for name, adapter in adapters.items()}
        without = self._losses(adapters, columns, all_others=1.0)
        alone = self._losses(adapters, columns, all_others=0.0)
        for name, adapter in adapters.items():
            adapter.B.copy_(columns[name])
        return {name: without[name] - alone[name] for name in adapters}

    def _losses(self, adapters: Adapters, columns: Values, all_others: float) -> Values:
        """Return L (r,) by layer with one component switched off or on, and `all_others` the other way."""
        found: Values = {}
        for name, adapter in adapters.items():
            adapter.B.copy_(columns[name] * all_others)
        for name, adapter in adapters.items():
            losses = []
            for i, column in enumerate(columns[name].unbind(1)):
                adapter.B[:, i] = column * (1 - all_others)
                losses.append(self._loss())
                adapter.B[:, i] = column * all_others
            found[name] = torch.stack(losses) if losses else adapter.B.new_zeros(0)
        return found

    def _loss(self) -> torch.Tensor:
        assert self._passes is not None  # `hold_passes` runs before any step
        self.measured += 1
        return torch.stack([self._passes.loss(batches) for batches in self._rows]).mean()

    def state_dict(self) -> dict[str, Any]:
        return {"measured": self.measured}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.measured = state["measured"]


__all__ = ["AblationLoss"]
