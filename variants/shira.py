"""SHiRA: sparse high-rank adaptation; a small share of a weight's own entries is trained.

    y = (W + s · M ∘ V) x        M: fixed mask with k entries, k = r(in + out) unless a budget says otherwise
                                 V: trained, zero at the start, kept as k values

  | mask | entries |
  |---|---|
  | random | drawn with `seed` |
  | magnitude | the largest abs(W) |
  | gradient | the largest mean abs(∂L/∂W) over the first `collect_steps` steps |
  | snip | the largest abs(W) times that |
  | structured | whole rows and columns at even distances, then the diagonal |

Paper     Bhardwaj et al. 2024, "Sparse High Rank Adapters", NeurIPS, arXiv 2406.13175.
Code      PEFT's `shira` (the official repository has none), whose mask is random or the user's own.
Budget    `budget` replaces rank: exactly so many entries, shared between the layers as r(in + out) does.
Hooks     on_step_begin  whether gradients are collected
          on_gradients   masks made of gradients: collects, then chooses; until then no value moves
          on_train_end   raises where no mask was chosen
Cost      k parameters for each layer, as many as LoRA of rank r. W + ΔW is formed in each pass, a copy of W that is
          not kept; the gradient is computed at the entries alone, but whole in the steps that choose a mask.
          Optimizer state and file have k entries (and k places).
Decay     the values decay, as under transformers' trainer, with which PEFT's are trained.
Known     ΔW has full rank where entries allow it, so a hand-over as a low-rank adapter is large or not exact.
          The paper takes gradients before training; here the first steps, which train the head, give them.
          Its structured mask is not specified to the entry; ours is the one in the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import collectives, field_checks, layers, seeding
from variants.core.adapters.adapter import check_rank
from variants.core.adapters.sparse_delta import SparseDelta, check_finite, largest
from variants.core.allocation.budget import apportion
from variants.core.variant import AdapterVariant, Step

MASKS = ("random", "magnitude", "gradient", "snip", "structured")
COLLECTED = ("gradient", "snip")


@dataclass(kw_only=True)
class SHiRA(AdapterVariant):
    """SHiRA.

    rank: r of k = r(in + out) entries. mask: see the module's text. scale: s.
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
                f"collect_steps: {self.collect_steps} with mask: {self.mask}, allowed: 1; it collects none"
            )
        if self.seed and self.mask != "random":
            raise ValueError(f"seed: {self.seed} with mask: {self.mask}, allowed: 0; it draws nothing")
        field_checks.check_budget(self, "rank")
        self._counts: dict[str, int] = {}  # entries of the layers
        self._chosen = self.mask not in COLLECTED
        self._sums: dict[str, torch.Tensor] = {}  # of the gradients' absolute values

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
        if self.mask == "random":
            generator = seeding.generator(self.seed, name)
            places = torch.randperm(matrix.numel(), generator=generator)[:count].sort().values
        elif self.mask == "magnitude":
            check_finite({name: matrix}, "mask: the weight of {} is not finite")
            places = largest(matrix.abs(), count)
        elif self.mask == "structured":
            places = _structured(matrix.shape[0], matrix.shape[1], count)
        else:
            places = torch.arange(count)  # until the gradients are there
        adapter = SparseDelta(layer, places, self.scale)
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
                raise ValueError(f"mask: {name} took no part in the loss; exclude it")
            found = collectives.all_reduce_sum(adapter.gradient).abs() / self.collect_steps
            self._sums[name] = self._sums[name] + found if name in self._sums else found
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
            raise RuntimeError("mask: none was chosen, for too few steps had gradients")

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
    """`count` places of a rows×columns matrix: whole rows and columns, the diagonal, then what comes first."""
    lines = max(1, count // (rows + columns))
    order = torch.zeros(rows, columns)
    order.fill_diagonal_(1.0)
    order[torch.arange(lines) * rows // lines] = 2.0
    order[:, torch.arange(lines) * columns // lines] = 2.0
    return largest(order, count)
