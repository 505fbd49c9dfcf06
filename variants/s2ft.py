"""S²FT: whole input or output channels of some layers are trained, chosen at random and held as dense slices.

    rows       of layers that widen (up, gate, value): `fraction` of the output channels
    columns    of layers that narrow (down, output): `fraction` of the input channels
    y = (W + ΔW) x, ΔW trained in the chosen rows or columns, zero at the start

Paper     Yang et al. 2024, "S²FT: Efficient, Scalable and Generalizable LLM Fine-tuning by Structured Sparsity",
          NeurIPS, arXiv 2412.06289.
Code      Infini-AI-Lab/S2FT a58edbb, s2ft/s2.py. It permutes coupled weights so that the chosen channels lie side by
          side; here the same numbers are trained at their places, so nothing is permuted and biases are allowed.
Budget    `budget` replaces fraction: numbers of channels as even as integers allow.
Family    sparse
Trains    some rows or columns of W
Changes   nothing
Checked   released code: test_s2ft test_trajectory_of_the_released_code
Hooks     none: the channels are drawn at the start.
Cost      `in` parameters for a row, `out` for a column; W + ΔW in each pass, as SHiRA.
Decay     values decay, towards the base model.
Known     Without `rows` and `columns` a layer with more outputs than inputs has rows, any other columns. The released
          script draws channels of all layers together (`pooled`) and whole heads (`groups`), and sets a fraction for
          each kind of layer; the paper trains output and down projections alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import field_checks, layers, seeding, target_modules
from variants.core.adapters.sparse_delta import SparseDelta
from variants.core.allocation.budget import spread
from variants.core.variant import AdapterVariant, pattern_value


@dataclass(kw_only=True)
class S2FT(AdapterVariant):
    """S²FT.

    fraction: of a layer's channels that is trained. pooled: draw from the channels of all layers together.
    rows, columns: names, as in `targets`, of the layers whose output or input channels are chosen.
    groups: by name, how many channels side by side are chosen together, as the size of a head: {v_proj: 64}.
    seed: of the draw. budget: trained parameters, in place of fraction (`variants.core.allocation.budget`).
    """

    name: str = "s2ft"
    fraction: float = 0.05
    pooled: bool = False
    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    groups: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    budget: int | None = None

    adapters: dict[str, SparseDelta] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "seed", at_least=0)
        field_checks.check("fraction", self.fraction, 0 < self.fraction <= 1, "0 < fraction ≤ 1")
        for size in self.groups.values():
            field_checks.check("groups", size, size >= 1, "a whole number ≥ 1")
        field_checks.check_budget(self, "fraction", "pooled", "groups")
        self._channels: dict[str, torch.Tensor] = {}  # chosen channels by layer

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {"fraction": 0.3},
            {"fraction": 0.2, "pooled": True, "rows": ["fc2"], "columns": ["fc1"], "seed": 2},
            {"fraction": 0.5, "groups": {"fc1": 4}},
            {"budget": 101},
        ]

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        selected = self.select(model, head)
        for field_name in ("rows", "columns", "groups"):
            for pattern in getattr(self, field_name):
                if not any(target_modules.matches(name, pattern) for name in selected):
                    raise ValueError(f"{field_name}: no adapted layer ends in {pattern!r}")
        sizes = {name: layers.size(layer) for name, layer in selected.items()}
        channels = {name: size[0] if self.by_rows(name, size) else size[1] for name, size in sizes.items()}
        groups = {name: pattern_value(self.groups, name, 1) for name in sizes}
        for name, group in groups.items():
            if channels[name] % group:
                raise ValueError(f"groups: {group} does not divide the {channels[name]} channels of {name}")
        pools = {name: channels[name] // groups[name] for name in sizes}
        if self.budget is not None:
            costs = {name: sum(size) - channels[name] for name, size in sizes.items()}
            counts = spread(costs, self.budget, pools, least=0)
        elif self.pooled:
            counts = self._pooled(pools)
        else:
            counts = {name: int(pool * self.fraction) for name, pool in pools.items()}
        if not any(counts.values()):
            raise ValueError(f"fraction: {self.fraction} chooses no channel, allowed: more")
        for name, count in counts.items():
            first = self.drawn(name, pools[name], count) * groups[name]
            self._channels[name] = (first[:, None] + torch.arange(groups[name])).flatten().sort().values

    def by_rows(self, name: str, size: tuple[int, int]) -> bool:
        """Whether rows of the layer `name` are trained. size: (out, in)."""
        for rows, patterns in ((True, self.rows), (False, self.columns)):
            if any(target_modules.matches(name, pattern) for pattern in patterns):
                return rows
        return size[0] > size[1]

    def _pooled(self, pools: Mapping[str, int]) -> dict[str, int]:
        owners = [name for name, pool in pools.items() for _ in range(pool)]
        order = torch.randperm(len(owners), generator=seeding.generator(self.seed, ""), device="cpu")
        chosen = [owners[i] for i in order[: int(len(owners) * self.fraction)].tolist()]
        return {name: chosen.count(name) for name in pools}

    def drawn(self, name: str, pool: int, count: int) -> torch.Tensor:
        """Return the numbers (count,) of the chosen channels, or groups of channels, among `pool`."""
        return torch.randperm(pool, generator=seeding.generator(self.seed, name))[:count]

    def build(self, name: str, layer: nn.Module) -> SparseDelta:
        rows, columns = size = layers.size(layer)
        numbers, channels = torch.arange(rows * columns).view(rows, columns), self._channels[name]
        lines = numbers[channels] if self.by_rows(name, size) else numbers[:, channels]
        return SparseDelta(layer, lines.flatten())

    def state_dict(self) -> dict[str, Any]:
        return {"indices": {name: adapter.indices for name, adapter in self.adapters.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, adapter in self.adapters.items():
            adapter.set_indices(state["indices"][name])
