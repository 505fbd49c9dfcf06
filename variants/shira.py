"""SHiRA: sparse high-rank adaptation; a small fraction of a weight's entries is trained.

    y = (W + s · M ∘ V) x        M: fixed mask with k entries, k = r(in + out) unless a budget says otherwise
                                 V: trained, zero at the start, kept as k values

  | mask | entries |
  |---|---|
  | random | drawn with `seed` |
  | magnitude | the largest abs(W) |
  | gradient | the largest mean abs(∂L/∂W) over the first `collect_steps` steps |
  | snip | the largest abs(W) times the score of `gradient` |
  | structured | whole rows and columns at equal distances, then the diagonal |

Paper     Bhardwaj et al. 2024, "Sparse High Rank Adapters", NeurIPS, arXiv 2406.13175.
Code      PEFT's `shira` (the official repository has none), whose mask is random or user-defined.
Budget    `budget` replaces rank: exactly so many entries, divided among layers in proportion to in + out.
Family    sparse
Trains    k entries of each W
Changes   mask: chosen once, in the first steps (gradient, snip) or at the start
Checked   PEFT: test_shira test_trajectory_of_peft_with_the_same_masks
Hooks     on_step_begin  decides whether to collect gradients
          on_gradients   for masks from gradients: collects them, then chooses the mask; until then no value moves
          on_train_end   raises if no mask was chosen
Cost      k parameters for each layer, as many as LoRA of rank r. W + ΔW is formed in each pass, a copy of W that is
          not saved; the gradient is computed only at the entries, but densely in the steps that choose a mask.
          Optimizer state and file have k entries (and k indices).
Decay     the values decay, as with transformers' trainer, which trains PEFT's.
Known     ΔW has full rank if its entries allow it, so an export as a low-rank adapter is large or not exact.
          The paper takes gradients before training; here they come from the first steps, which train the head.
          The paper does not specify its structured mask exactly; ours is the one in the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import collectives, field_checks, layers
from variants.core.adapters.adapter import check_rank
from variants.core.adapters.sparse_delta import SparseDelta, check_finite, largest
from variants.core.allocation.budget import apportion
from variants.core.masks.sources import Random
from variants.core.variant import AdapterVariant, Step

MASKS = ("random", "magnitude", "gradient", "snip", "structured")
COLLECTED = ("gradient", "snip")


@dataclass(kw_only=True)
class SHiRA(AdapterVariant):
    """SHiRA.

    rank: r of k = r(in + out) entries. mask: see the module's docstring. scale: s.
    collect_steps: steps whose gradients choose the mask (gradient, snip). seed: of the random mask.
    budget: trained parameters at the end, in place of rank (`variants.core.allocation.budget`).
    """

    name: str = "shira"
    rank: int = 8
    mask: str = "random"
    scale: float = 1.0
    collect_steps: int = 1
    seed: int = 0
    budget: int | None = None

    adapters: dict[str, SparseDelta] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank", "collect_steps")
        field_checks.check_int(self, "seed", at_least=0)
        field_checks.check_positive(self, "scale")
        field_checks.check_one_of(self, "mask", MASKS)
        if self.collect_steps != 1 and self.mask not in COLLECTED:
            raise ValueError(
                f"collect_steps: {self.collect_steps} with mask: {self.mask}, allowed: 1; it collects no gradients"
            )
        if self.seed and self.mask != "random":
            raise ValueError(f"seed: {self.seed} with mask: {self.mask}, allowed: 0; it draws nothing")
        field_checks.check_budget(self, "rank")
        self._counts: dict[str, int] = {}  # entries by layer
        self._chosen = self.mask not in COLLECTED
        self._sums: dict[str, torch.Tensor] = {}  # of abs(G), by layer

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {"rank": 2},
            {"rank": 1, "mask": "magnitude", "scale": 2.0},
            {"rank": 2, "mask": "gradient", "collect_steps": 3},
            {"rank": 2, "mask": "snip"},
            {"rank": 2, "mask": "structured"},
            {"budget": 101, "seed": 3},
        ]

    def plan(self, total_steps: int) -> None:
        if not self._chosen and self.collect_steps >= total_steps:
            raise ValueError(f"collect_steps: {self.collect_steps}, allowed: fewer than the run's {total_steps} steps")

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        sizes = {name: layers.size(layer) for name, layer in self.select(model, head).items()}
        if self.budget is not None:
            entries = {name: rows * columns for name, (rows, columns) in sizes.items()}
            self._counts = apportion({name: sum(size) for name, size in sizes.items()}, self.budget, entries)
            return
        self._counts = {name: self.rank * sum(size) for name, size in sizes.items()}
        for name, layer in self.select(model, head).items():
            check_rank(self.rank, layer)
            rows, columns = sizes[name]
            if self._counts[name] > rows * columns:
                raise ValueError(
                    f"rank: {self.rank} makes {self._counts[name]} entries in {name} of size {rows}×{columns}, "
                    f"allowed: at most {rows * columns // (rows + columns)}"
                )

    def build(self, name: str, layer: nn.Module) -> SparseDelta:
        count = self._counts[name]
        matrix = layers.matrix(layer).detach()
        if self.mask in COLLECTED or matrix.is_meta:
            indices = torch.arange(count)  # until gradients have chosen them, or for want of weights
        elif self.mask == "random":
            indices = Random(seed=self.seed).permutation(name, matrix.numel())[:count].sort().values
        elif self.mask == "magnitude":
            check_finite({name: matrix}, "mask: the weight of {} is not finite")
            indices = largest(matrix.abs(), count)
        else:
            indices = _structured(matrix.shape[0], matrix.shape[1], count)
        adapter = SparseDelta(layer, indices, self.scale)
        adapter.settled = self._chosen
        return adapter

    def on_step_begin(self, step: Step) -> None:
        for adapter in self.adapters.values():
            adapter.watched, adapter.gradient = not self._chosen, None

    @torch.no_grad()
    def on_gradients(self, step: Step) -> None:
        if self._chosen:
            return
        for name, adapter in self.adapters.items():
            if adapter.gradient is None:
                raise ValueError(f"mask: {name} is not part of the loss; exclude it")
            size = collectives.all_reduce_sum(adapter.gradient).abs() / self.collect_steps
            self._sums[name] = self._sums[name] + size if name in self._sums else size
        if step.index >= self.collect_steps:
            check_finite(self._sums, "mask: a score is not finite")
            for name, adapter in self.adapters.items():
                score = self._sums.pop(name)
                if self.mask == "snip":
                    score = score * layers.matrix(adapter.base).abs()
                adapter.set_indices(largest(score, self._counts[name]))
                adapter.settled = True
            self._chosen = True

    def needs_whole_weights(self) -> str | None:
        return "mask: snip" if self.mask == "snip" else None

    def is_final_form(self, step: Step) -> bool:
        return self._chosen

    def on_train_end(self, step: Step) -> None:
        if not self._chosen:
            raise RuntimeError("mask: none was chosen, because too few steps had finite gradients")

    def state_dict(self) -> dict[str, Any]:
        indices = {name: adapter.indices for name, adapter in self.adapters.items()}
        return {"indices": indices, "chosen": self._chosen, "sums": dict(self._sums)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._chosen = state["chosen"]
        self._sums = {name: sums.to(self.adapters[name].weight.device) for name, sums in state["sums"].items()}
        for name, adapter in self.adapters.items():
            adapter.set_indices(state["indices"][name])
            adapter.settled = self._chosen


def _structured(rows: int, columns: int, count: int) -> torch.Tensor:
    """Return `count` indices of a rows×columns matrix: whole rows and columns, the diagonal, then the first others."""
    lines = max(1, count // (rows + columns))
    order = torch.zeros(rows, columns)
    order.fill_diagonal_(1.0)
    order[torch.arange(lines) * rows // lines] = 2.0
    order[:, torch.arange(lines) * columns // lines] = 2.0
    return largest(order, count)
