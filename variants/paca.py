"""PaCA: some input columns of W are trained as they are; of a layer's input only these features are saved.

    y = W x + s (P − P₀) x[columns]         P: out×r, starts at P₀ = W[:, columns]/s        s = α/r
    so W[:, columns] is s P, and a step of Adam on P moves it by s times the learning rate

Paper     Woo et al. 2025, "PaCA: Partial Connection Adaptation for Efficient Fine-Tuning", ICLR, arXiv 2503.01905.
Code      WooSunghyeon/paca be9a806. There W is overwritten in every second forward pass, so that evaluation misses the
          last step, and without gradient checkpointing every second step trains on old weights; here W + ΔW is always
          the newest.
Budget    `budget` replaces rank: numbers of columns as even as integers allow; one costs `out`.
Family    sparse
Trains    some columns of W
Changes   nothing
Checked   released code: test_paca test_trajectory_of_the_released_code
Hooks     none: the columns are drawn at the start.
Cost      r · out parameters per layer, and as many frozen numbers P₀. The gradient needs r features of every token and
          not all `in`, unless the layer is no matrix product (a convolution, an embedding): those form ΔW.
Decay     P decays, so the chosen columns of W themselves shrink towards zero, not their change: as in the released
          code.
Known     Columns are drawn at random, as in the released code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from variants.core import field_checks, layers, seeding
from variants.core.adapters import svd
from variants.core.adapters.adapter import Adapter, check_rank
from variants.core.allocation.budget import spread
from variants.core.variant import AdapterVariant


class Columns(Adapter):
    """ΔW[:, columns] = scale · (P − P₀), with P (out, r) trained and P₀ its start."""

    columns: torch.Tensor
    start: torch.Tensor

    def __init__(self, base: nn.Module, columns: torch.Tensor, scale: float) -> None:
        super().__init__(base)
        self.scale = scale
        weight = self.layer_kind.matrix.detach()
        taken = weight.to(torch.promote_types(weight.dtype, torch.float32))[:, columns.to(weight.device)] / scale
        self.P = nn.Parameter(taken.contiguous())
        self.register_buffer("columns", columns.to(weight.device), persistent=False)
        self.register_buffer("start", self.P.detach().clone(), persistent=False)

    def change(self) -> torch.Tensor:
        """Return the change (out, r) of the columns."""
        return (self.P - self.start) * self.scale

    def update(self, x: torch.Tensor) -> torch.Tensor:
        if not self.layer_kind.is_product:
            return self.layer_kind.apply(x.to(self.P.dtype) if x.is_floating_point() else x, self.delta())
        return F.linear(x.index_select(-1, self.columns).to(self.P.dtype), self.change())

    def delta(self) -> torch.Tensor:
        whole = self.P.new_zeros(self.out_features, self.in_features)
        return whole.index_copy(1, self.columns, self.change())

    def as_product(self) -> svd.Product:
        rows = torch.eye(self.in_features, dtype=self.P.dtype, device=self.P.device)[self.columns]
        return svd.without_zeros(rows, self.change().detach())

    @property
    def rank(self) -> int:
        return min(self.P.shape)

    def closed_form(self) -> int:
        return self.out_features * len(self.columns)

    def take_up(self, columns: torch.Tensor, start: torch.Tensor) -> None:
        """Take up the saved columns (r,) and P₀ (out, r)."""
        self.columns, self.start = columns.to(self.P.device), start.to(self.P.device)


@dataclass(kw_only=True)
class PaCA(AdapterVariant):
    """PaCA.

    rank: number of trained columns of every layer. alpha: as in LoRA. seed: of the draw.
    budget: trained parameters, in place of rank (`variants.core.allocation.budget`).
    """

    name: str = "paca"
    rank: int = 8
    alpha: float = 16.0
    seed: int = 0
    budget: int | None = None

    adapters: dict[str, Columns] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank")
        field_checks.check_int(self, "seed", at_least=0)
        field_checks.check_positive(self, "alpha")
        field_checks.check_budget(self, "rank")
        self._ranks: dict[str, int] = {}

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [{"rank": 2}, {"rank": 3, "alpha": 3.0, "seed": 2}, {"budget": 101}]

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        selected = self.select(model, head)
        if self.budget is not None:
            sizes = {name: layers.size(layer) for name, layer in selected.items()}
            most = {name: min(size) for name, size in sizes.items()}
            self._ranks = spread({name: rows for name, (rows, _) in sizes.items()}, self.budget, most)
            return
        self._ranks = dict.fromkeys(selected, self.rank)
        for layer in selected.values():
            check_rank(self.rank, layer)

    def build(self, name: str, layer: nn.Module) -> Columns:
        rank = self._ranks[name]
        return Columns(layer, self.drawn(name, layers.size(layer)[1], rank), self.alpha / rank)

    def drawn(self, name: str, width: int, count: int) -> torch.Tensor:
        """Return the columns (count,) of the layer `name`, which has `width`."""
        return torch.randperm(width, generator=seeding.generator(self.seed, name), device="cpu")[:count].sort().values

    def state_dict(self) -> dict[str, Any]:
        return {"columns": {name: {"places": a.columns, "start": a.start} for name, a in self.adapters.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, adapter in self.adapters.items():
            saved = state["columns"][name]
            adapter.take_up(saved["places"], saved["start"])
