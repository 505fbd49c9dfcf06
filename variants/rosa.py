"""RoSA: robust adaptation; a low-rank and a sparse update are trained together.

    y = (W + S) x + (α/r) B A dropout(x)    A: r×in, kaiming-uniform(√5)    B: out×r, zero
                                            S: k trained values on a fixed support, zero at the start

  | steps | |
  |---|---|
  | 1 … `warmup_steps` | LoRA only |
  | the next `collect_steps` | LoRA only; the dense gradients G = ∂L/∂W are collected |
  | all others | A, B and S, whose support in each layer is the k entries with the largest |
  | | mean G² (`squared_mean`, a diagonal Fisher information) or abs(mean G) (`mean`) |

Paper     Nikdan et al. 2024, "RoSA: Accurate Parameter-Efficient Fine-Tuning via Robust Adaptation", ICML,
          arXiv 2401.04679.
Code      IST-DASLab/RoSA 5f70c49, with its peft-rosa 810da6a; its schedule `wlK` is the table above.
Budget    `budget` replaces rank and density: ranks as even as possible get all of it but the fraction `sparse_share`;
          the sparse part gets exactly the rest, by the layers' sizes. The budget is met exactly.
Family    sparse
Trains    A, B and k entries of W
Changes   mask: chosen once, after `warmup_steps` + `collect_steps` steps
Checked   written out: test_rosa test_the_trajectory_is_that_of_the_method_in_dense_tensors
Hooks     on_step_begin  decides whether to collect gradients
          on_gradients   sums them
          on_update      after the last of them: chooses the supports, and restarts
          on_train_end   raises if no support was chosen
Cost      r(in + out) + k parameters per layer. Before the supports are chosen, LoRA's step; while gradients are
          collected and afterwards also W + S and its gradient, which cost about as much as full fine-tuning of
          these layers. The statistic is as large as the adapted weights, and freed when the supports are chosen.
Decay     A, B and the values of S decay, as in the released code, where one group has them all; the values from the
          first step that moves them.
Restart   The authors recommend choosing the supports in a separate run and training with them from the start.
          `restart` does so within one run: when the supports are chosen, A and B are reset to their initial values
          and their moments to zero; the head and the learning-rate schedule continue. The default is false, because
          runs are compared at equal numbers of steps, and a restart discards what was learned before. For the
          recommended recipe set it and add warmup_steps + collect_steps to the run's steps.

Differences of the released code:

  - It squares the gradient of each accumulated batch; here that of the step is squared, so that supports do not
    depend on how a batch is split. Without accumulation there is no difference.
  - It freezes every parameter before each step and unfreezes the adapters only, so a classification head is never
    trained. Here it is.
  - Its parameters are bfloat16, here float32; its column indices have 16 bits, so that wider layers fail.
  - Its collecting hook zeroes the layer's input in place; with dropout 0 and equal dtypes autograd raises.

Known     No results on GLUE, but on GSM8K, ViGGO and SQL with LLaMA 2. Gradients are taken before clipping.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from variants.core import collectives, field_checks, layers
from variants.core.adapters.adapter import Adapter, LowRank, check_rank
from variants.core.adapters.sparse_delta import SparseDelta, check_finite, largest
from variants.core.adapters.svd import Product
from variants.core.allocation.budget import apportion, check_range, spread
from variants.core.masks.sources import Fisher, Gradient
from variants.core.variant import AdapterVariant, Step

STATISTICS = ("squared_mean", "mean")


class LowRankAndSparse(SparseDelta, LowRank):
    """ΔW = scale · B A + S, where S acts once its indices are settled. Dropout acts on the input of A only."""

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float, entries: int) -> None:
        LowRank.__init__(self, base, rank, scale, dropout)
        self.hold(torch.arange(entries))  # until gradients have chosen them
        self.settled = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self._acts:
            return LowRank.forward(self, x)
        if not self._uses_merged_weight:
            return Adapter.forward(self, x)
        if self.layer_kind.is_product:
            return self.product(x, self.layer_kind.as_matrix(self.merged_weight()))
        return SparseDelta.forward(self, x) + LowRank.update(self, x)

    def update(self, x: torch.Tensor) -> torch.Tensor:
        low_rank = LowRank.update(self, x)
        return low_rank + SparseDelta.update(self, x) if self._acts else low_rank

    def _scaled_values(self) -> torch.Tensor:
        return self.values if self.settled else self.values.detach()

    def delta(self) -> torch.Tensor:
        return LowRank.delta(self) + self.dense()

    def as_product(self) -> Product:
        return Adapter.as_product(self)

    @property
    def is_empty(self) -> bool:
        return False

    @property
    def rank(self) -> int:
        """The sum of the ranks of B A and S, up to the size: generic values share no directions before that."""
        return min(self.A.shape[0] + self.structural_rank(), self.out_features, self.in_features)

    def rank_from(self, source: np.ndarray) -> int:
        self.structural_rank(source)
        return self.rank

    def closed_form(self) -> int:
        return self.A.shape[0] * self.cost + len(self.values)

    def effective_parameters(self) -> int:
        return self.A.shape[0] * self.cost + super().effective_parameters()

    def extra_repr(self) -> str:
        return f"rank={self.A.shape[0]}, entries={len(self.values)}, scale={self.scale:g}, dropout={self.dropout:g}"


@dataclass(kw_only=True)
class RoSA(AdapterVariant):
    """RoSA.

    rank, alpha, dropout: of the low-rank part, as in LoRA. density: fraction of a layer's entries in the sparse part.
    warmup_steps: steps before gradients are collected. collect_steps: steps whose gradients choose the supports.
    statistic: "squared_mean" or "mean", see the module's docstring.
    restart: whether A and B restart when the supports are chosen.
    budget: trained parameters at the end, in place of rank and density (`variants.core.allocation.budget`).
    sparse_share: fraction of the budget that the sparse part gets.
    """

    name: str = "rosa"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    density: float = 0.006
    warmup_steps: int = 64
    collect_steps: int = 1
    statistic: str = "squared_mean"
    restart: bool = False
    budget: int | None = None
    sparse_share: float = 0.5

    adapters: dict[str, LowRankAndSparse] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank", "collect_steps")
        field_checks.check_int(self, "warmup_steps", at_least=0)
        field_checks.check_positive(self, "alpha", "density", "sparse_share")
        field_checks.check_fraction(self, "dropout", "sparse_share")
        if self.density > 1:
            raise ValueError(f"density: {self.density!r}, allowed: 0 < density ≤ 1")
        field_checks.check_one_of(self, "statistic", STATISTICS)
        field_checks.check_budget(self, "rank", "density")
        if self.budget is None and self.sparse_share != type(self).sparse_share:
            raise ValueError(f"sparse_share: {self.sparse_share} without a budget, allowed: {type(self).sparse_share}")
        self._source = Fisher() if self.statistic == "squared_mean" else Gradient()
        self._ranks: dict[str, int] = {}
        self._entries: dict[str, int] = {}
        self._sums: dict[str, torch.Tensor] = {}  # of G² or G over the collected steps, by layer
        self._collected = 0
        self._chosen = False
        self._start: dict[str, torch.Tensor] = {}  # initial A by layer, until the restart

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {"rank": 2, "density": 0.1, "warmup_steps": 2, "collect_steps": 2},
            {"rank": 1, "density": 0.2, "warmup_steps": 0, "statistic": "mean", "dropout": 0.1},
            {"rank": 1, "density": 0.1, "warmup_steps": 3, "collect_steps": 3, "restart": True},
            {"budget": 151, "sparse_share": 0.3, "warmup_steps": 1},
        ]

    def plan(self, total_steps: int) -> None:
        if self.warmup_steps + self.collect_steps >= total_steps:
            raise ValueError(
                f"warmup_steps: {self.warmup_steps} and collect_steps: {self.collect_steps}, "
                f"allowed: together fewer than the run's {total_steps} steps"
            )

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        selected = self.select(model, head)
        sizes = {name: layers.size(layer) for name, layer in selected.items()}
        if self.budget is not None:
            self._divide(self.budget, sizes)
            return
        self._ranks = dict.fromkeys(selected, self.rank)
        self._entries = {name: int(self.density * math.prod(size)) for name, size in sizes.items()}
        for name, layer in selected.items():
            check_rank(self.rank, layer)
            if not self._entries[name]:
                rows, columns = sizes[name]
                raise ValueError(
                    f"density: {self.density} leaves no entry in {name} of size {rows}×{columns}, "
                    f"allowed: at least {1 / (rows * columns):.2g}"
                )

    def _divide(self, budget: int, sizes: Mapping[str, tuple[int, int]]) -> None:
        """Set the layers' ranks and entries so that they have exactly `budget` parameters."""
        costs = {name: sum(size) for name, size in sizes.items()}
        most = {name: min(size) for name, size in sizes.items()}
        entries = {name: math.prod(size) for name, size in sizes.items()}
        largest_low_rank = sum(costs[name] * rank for name, rank in most.items())
        all_entries = sum(entries.values())
        # With the smallest budget the low-rank part can pay for one rank of every layer.
        least = _ceil(sum(costs.values()) / (1 - self.sparse_share))
        check_range(budget, least, largest_low_rank + all_entries)
        self._ranks = spread(costs, min(budget - _ceil(budget * self.sparse_share), largest_low_rank), most)
        rest = budget - sum(costs[name] * rank for name, rank in self._ranks.items())
        if rest > all_entries:
            raise ValueError(
                f"sparse_share: {self.sparse_share} of budget: {budget} makes {rest} entries, "
                f"allowed: at most the {all_entries} that the layers have"
            )
        self._entries = apportion(entries, rest, entries)

    def attach(self, model: nn.Module, head: Sequence[str] = ()) -> nn.Module:
        model = super().attach(model, head)
        if self.restart:
            self._start = {name: adapter.A.detach().clone() for name, adapter in self.adapters.items()}
        return model

    def build(self, name: str, layer: nn.Module) -> LowRankAndSparse:
        rank = self._ranks[name]
        return LowRankAndSparse(layer, rank, self.alpha / rank, self.dropout, self._entries[name])

    def on_step_begin(self, step: Step) -> None:
        for adapter in self.adapters.values():
            adapter.watched, adapter.gradient = self._collects(step), None

    def _collects(self, step: Step) -> bool:
        return not self._chosen and step.index > self.warmup_steps

    @torch.no_grad()
    def on_gradients(self, step: Step) -> None:
        if not self._collects(step):
            return
        for name, adapter in self.adapters.items():
            if not len(adapter.values):
                continue  # the budget left this layer no entry
            if adapter.gradient is None:
                raise ValueError(f"mask: {name} is not part of the loss; exclude it")
            new = self._source.measured(collectives.all_reduce_sum(adapter.gradient))
            self._sums[name] = self._sums[name] + new if name in self._sums else new
            adapter.gradient = None
        self._collected += 1

    @torch.no_grad()
    def on_update(self, step: Step) -> None:
        if self._chosen or self._collected < self.collect_steps:
            return
        check_finite(self._sums, "mask: a score is not finite")
        for name, adapter in self.adapters.items():
            if name in self._sums:
                adapter.set_indices(largest(self._source.score(self._sums.pop(name), None), len(adapter.values)))
            adapter.settled = True
            if self.restart:
                adapter.A.copy_(self._start.pop(name))
                adapter.B.zero_()
                for parameter in (adapter.A, adapter.B):
                    step.optimizer.state.pop(parameter, None)
        self._chosen = True

    def is_final_form(self, step: Step) -> bool:
        return self._chosen

    def on_train_end(self, step: Step) -> None:
        if not self._chosen:
            raise RuntimeError("mask: none was chosen, because too few steps had finite gradients")

    def state_dict(self) -> dict[str, Any]:
        return {
            "indices": {name: adapter.indices for name, adapter in self.adapters.items()},
            "chosen": self._chosen,
            "collected": self._collected,
            "sums": dict(self._sums),
            "start": dict(self._start),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._chosen, self._collected = state["chosen"], state["collected"]
        self._sums, self._start = (self._on_devices(state[name]) for name in ("sums", "start"))
        for name, adapter in self.adapters.items():
            adapter.set_indices(state["indices"][name])
            adapter.settled = self._chosen

    def _on_devices(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Move `tensors`, by layer, to the devices of their layers."""
        return {name: tensor.to(self.adapters[name].weight.device) for name, tensor in tensors.items()}


def _ceil(value: float) -> int:
    """Return ⌈value⌉, but ⌊value⌋ if only rounding has put the value above it."""
    return math.ceil(value - 1e-9 * abs(value))
