"""PRILoRA: ranks that rise with depth, and entries of A that are set to zero by their size and the size of their input.

    y = W x + (α/r) B A dropout(x)               A: r×in, kaiming-uniform(√5)    B: out×r, zero
    r of the blocks of the model: from `first_rank` to `last_rank`, linear in their number, rounded
    N_j ← β N_j + (1 − β) ‖x_j‖                  x_j: the j-th input over the tokens of a step
    every `interval` steps, in each row of A:    the fraction `pruned` of its entries with the smallest |A_ij| N_j
                                                 is set to zero; they train on

Paper     Benedek and Wolf 2024, "PRILoRA: Pruned and Rank-Increasing Low-Rank Adaptation", EACL Findings,
          arXiv 2401.11316.
Budget    `budget` replaces the mean of first_rank and last_rank, which stay in proportion: exact to less than one rank.
Family    low rank
Trains    A and B
Changes   entries of A: the least are set to zero every `interval` steps
Checked   written out: test_prilora test_training_written_out
Hooks     on_step_begin  forgets the inputs of a step that was left out
          on_update      averages the inputs' norms, and sets entries to zero
Cost      r(in + out) parameters per layer, `in` averages, and the norm of every input in each backward pass.
Decay     A and B decay.
Known     No code was found. From the abstract: ranks rise linearly with their mean fixed. From memory: 40 steps, half
          of the entries, β = 0.9, ranks 4 to 12 in 12 blocks. Assumed: the comparison is within each row of A; the
          scale has the layer's own rank; tokens count on whose output the loss depends, so padding does not. Conv1d,
          Conv2d, Conv2d in groups and Embedding are refused, because their inputs are no vectors. A layer outside
          numbered blocks is refused: it has no depth. A run whose last step sets entries to zero ends with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import collectives, field_checks, layers, target_modules
from variants.core.adapters.adapter import LowRank, check_rank
from variants.core.allocation.budget import proportional
from variants.core.variant import AdapterVariant, Step


class Observed(LowRank):
    """LoRA that sums up the squares of its layer's inputs, once for each backward pass.

    squares: (in,); None before the first.
    """

    squares: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        if self.training and self._enabled and y.requires_grad:
            y.register_hook(lambda gradient: self._collect(x, gradient))
        return y

    def _collect(self, x: torch.Tensor, gradient: torch.Tensor) -> None:
        counts = gradient.any(-1, keepdim=True)  # not padding, whose length depends on the batch
        squares = (x.detach().to(self.A.dtype) * counts).flatten(0, -2).square().sum(0)
        self.squares = squares if self.squares is None else self.squares + squares


@dataclass(kw_only=True)
class PRILoRA(AdapterVariant):
    """PRILoRA.

    first_rank, last_rank: of the first and the last adapted block. alpha, dropout: as in LoRA. interval, pruned: see
    the module's docstring. beta: β.
    budget: trained parameters, in place of the ranks' mean (`variants.core.allocation.budget`).
    """

    name: str = "prilora"
    first_rank: int = 4
    last_rank: int = 12
    alpha: float = 16.0
    dropout: float = 0.0
    interval: int = 40
    pruned: float = 0.5
    beta: float = 0.9
    budget: int | None = None

    adapters: dict[str, Observed] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "first_rank", "last_rank", "interval")
        field_checks.check_positive(self, "alpha")
        field_checks.check_fraction(self, "dropout", "pruned", "beta")
        field_checks.check_budget(self)
        self._ranks: dict[str, int] = {}
        self._norms: dict[str, torch.Tensor] = {}  # N (in,) by layer

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {"first_rank": 1, "last_rank": 3, "interval": 5},
            {"first_rank": 3, "last_rank": 2, "interval": 4, "pruned": 0.25, "dropout": 0.1},
            {"budget": 190, "interval": 3},
        ]

    def plan(self, total_steps: int) -> None:
        if self.interval > total_steps:
            raise ValueError(f"interval: {self.interval}, allowed: at most the run's {total_steps} steps")

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        selected = self.select(model, head)
        for name, layer in selected.items():
            if not layers.is_linear(layer):
                kind = type(layer).__name__
                raise ValueError(f"targets: {name} is a {kind}, allowed: Linear, Conv1D; its inputs are no vectors")
        wanted = self._rising(list(selected))
        sizes = {name: layers.size(layer) for name, layer in selected.items()}
        # Fewer entries in a row than rows could lower the rank of A.
        most = {name: min(*sizes[name], self._left(sizes[name][1])) for name in sizes}
        if self.budget is not None:
            costs = {name: sum(size) for name, size in sizes.items()}
            self._ranks = proportional(wanted, costs, self.budget, dict.fromkeys(sizes, 1), most)
            return
        self._ranks = {name: round(rank) for name, rank in wanted.items()}
        for name, rank in self._ranks.items():
            check_rank(rank, selected[name])
            if rank > most[name]:
                raise ValueError(
                    f"pruned: {self.pruned} leaves {most[name]} entries in a row of A of {name}, allowed: one that "
                    f"leaves at least its rank, {rank}"
                )

    def _rising(self, names: Sequence[str]) -> dict[str, float]:
        """Return first_rank … last_rank by layer, before rounding."""
        blocks = {name: target_modules.block_number(name) for name in names}
        for name, block in blocks.items():
            if block is None:
                raise ValueError(f"targets: {name} is in no numbered block, so it has no depth; exclude it")
        order = sorted({block for block in blocks.values() if block is not None})
        first, further = float(self.first_rank), self.last_rank - self.first_rank
        if len(order) == 1:
            return dict.fromkeys(names, first + further / 2)
        ranks = {block: first + further * i / (len(order) - 1) for i, block in enumerate(order)}
        return {name: ranks[block] for name, block in blocks.items() if block is not None}

    def _left(self, width: int) -> int:
        """Return how many entries of a row of A are not set to zero. width: in."""
        return width - int(self.pruned * width)

    def build(self, name: str, layer: nn.Module) -> Observed:
        rank = self._ranks[name]
        adapter = Observed(layer, rank, self.alpha / rank, self.dropout)
        self._norms[name] = adapter.A.new_zeros(adapter.in_features).detach()
        return adapter

    def on_step_begin(self, step: Step) -> None:
        for adapter in self.adapters.values():
            adapter.squares = None

    @torch.no_grad()
    def on_update(self, step: Step) -> None:
        squares = [a.A.new_zeros(a.in_features) if a.squares is None else a.squares for a in self.adapters.values()]
        summed = collectives.all_reduce_sum(torch.cat(squares)).split([len(part) for part in squares])
        for name, square in zip(self.adapters, summed, strict=True):
            self._norms[name] = self.beta * self._norms[name] + (1 - self.beta) * square.sqrt()
        if step.index % self.interval == 0:
            for name, adapter in self.adapters.items():
                self._prune(adapter, self._norms[name])

    def _prune(self, adapter: Observed, norms: torch.Tensor) -> None:
        importance = adapter.A.abs() * norms
        least = importance.topk(adapter.in_features - self._left(adapter.in_features), dim=1, largest=False).indices
        adapter.A.scatter_(1, least, 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"norms": dict(self._norms)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._norms = {name: norms.to(self.adapters[name].A.device) for name, norms in state["norms"].items()}

    def start_from(self, state: Mapping[str, Any]) -> None:
        """Measure anew: the inputs are those of another task."""
