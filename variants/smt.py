"""SMT: a few steps of full fine-tuning find the blocks of W with the largest gradients; then only these are trained.

    full phase, `full_steps` steps      every entry of the adapted layers is trained; their gradients are summed
    score of a block                    abs(mean of the summed gradients in it)
    afterwards                          the blocks with the largest scores of all layers are trained, all else stays
    where
                                        the full phase has left it

Paper     He et al. 2025, "Sparse Matrix in Large Language Model Fine-tuning", ICLR, arXiv 2405.15525.
Code      HectorHHZ/Sparse_Matrix_Tuning 31c5ff6, peft/tuner/smt.py. It has two pools, attention and feed-forward, with
          a number each, and blocks of 256; here one pool.
Budget    `budget` replaces blocks: as many as fit, so it is met to less than a block.
Family    sparse
Trains    every entry of W, then some blocks
Changes   mask: chosen once, after `full_steps` steps
Checked   released code: test_smt test_every_number_of_the_released_code
Hooks     on_gradients   sums the gradients of the full phase
          on_update      chooses the blocks
          on_train_end   raises if none were chosen
Cost      in the full phase gradients, their sums and moments of every entry of the adapted layers, and W + ΔW in each
          pass; afterwards those of the blocks, and ΔW as a second matrix beside W. The full phase is part of the run's
          steps.
Decay     values decay, towards the base model; in the released code blocks decay towards zero. Its scripts set none.
Known     There is no rewind: the full phase changes all entries of W, so ΔW is dense and of full rank, as is an
          export, and `report` has the number of changed entries. Signed gradients that alternate cancel in the score,
          though the code calls it mean_abs. Both sides of a layer must be multiples of `block`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import field_checks, layers
from variants.core.adapters.drifting_delta import DriftingDelta
from variants.core.adapters.sparse_delta import check_finite, largest_of_groups
from variants.core.masks.scopes import Block
from variants.core.variant import AdapterVariant, Step


@dataclass(kw_only=True)
class SMT(AdapterVariant):
    """SMT.

    blocks: number of trained blocks of all layers together. block: side of a block. full_steps: of the full phase.
    full_lr_scale: its learning rate over that of the run; 1 for the same.
    budget: trained parameters at the end, in place of blocks (`variants.core.allocation.budget`).
    """

    name: str = "smt"
    blocks: int = 32
    block: int = 64
    full_steps: int = 100
    full_lr_scale: float = 1.0
    budget: int | None = None

    adapters: dict[str, DriftingDelta] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "blocks", "block", "full_steps")
        field_checks.check_positive(self, "full_lr_scale")
        field_checks.check_budget(self, "blocks")
        self._sums: dict[str, torch.Tensor] = {}  # of the gradients (out · in,) by layer, in the full phase
        self._chosen = False
        self._scope = Block(block=self.block)
        self._count = 0  # of blocks

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {"blocks": 20, "block": 2, "full_steps": 2},
            {"blocks": 24, "block": 2, "full_steps": 3, "full_lr_scale": 0.5},
            {"budget": 101, "block": 2, "full_steps": 2},
        ]

    def plan(self, total_steps: int) -> None:
        if self.full_steps >= total_steps:
            raise ValueError(f"full_steps: {self.full_steps}, allowed: fewer than the run's {total_steps} steps")

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        sizes = {name: layers.size(layer) for name, layer in self.select(model, head).items()}
        self._scope.check(sizes)
        there = sum(rows * columns for rows, columns in sizes.values()) // self.block**2
        self._count = self.blocks if self.budget is None else self.budget // self.block**2
        if not 1 <= self._count <= there:
            setting = f"blocks: {self.blocks}" if self.budget is None else f"budget: {self.budget}"
            raise ValueError(f"{setting} is {self._count} blocks, allowed for these targets: 1 … {there}")

    def build(self, name: str, layer: nn.Module) -> DriftingDelta:
        return DriftingDelta(layer, torch.arange(layers.matrix(layer).numel()))

    def optimizer_options(self, name: str) -> Mapping[str, Any]:
        return {"lr_scale": self.full_lr_scale} if self.full_lr_scale != 1.0 else {}

    @torch.no_grad()
    def on_gradients(self, step: Step) -> None:
        if self._chosen:
            return
        for name, adapter in self.adapters.items():
            gradient = adapter.values.grad
            if gradient is None:
                raise ValueError(f"targets: {name} is not part of the loss; exclude it")
            self._sums[name] = self._sums[name] + gradient if name in self._sums else gradient.clone()

    @torch.no_grad()
    def on_update(self, step: Step) -> None:
        if not self._chosen and step.index >= self.full_steps:
            self._choose(step)

    def scores(self) -> dict[str, torch.Tensor]:
        """Return the scores (rows, columns) of every layer's blocks."""
        sums = {name: self._sums[name].view(a.out_features, a.in_features) for name, a in self.adapters.items()}
        return {name: self._scope.units(s).abs().view(len(s) // self.block, -1) for name, s in sums.items()}

    def _choose(self, step: Step) -> None:
        scores = self.scores()
        check_finite(scores, "blocks: a score of {} is not finite")
        (chosen,) = largest_of_groups([[score.flatten() for score in scores.values()]], [self._count])
        for adapter, blocks in zip(self.adapters.values(), chosen, strict=True):
            adapter.move(self._scope.entries(blocks, (adapter.out_features, adapter.in_features)), step.optimizer)
        self._chosen, self._sums = True, {}
        for adapter in self.adapters.values():
            step.optimizer.state.pop(adapter.values, None)
        if self.full_lr_scale != 1.0:
            self._restore_rate(step)

    def _restore_rate(self, step: Step) -> None:
        """Give the trained values the learning rate of the run."""
        mine = {id(adapter.values) for adapter in self.adapters.values()}
        rates = getattr(step.scheduler, "base_lrs", None)
        for i, group in enumerate(step.optimizer.param_groups):
            if any(id(parameter) in mine for parameter in group["params"]):
                for key in {"lr", "initial_lr"} & group.keys():
                    group[key] /= self.full_lr_scale
                if rates is not None:
                    rates[i] /= self.full_lr_scale

    def is_final_form(self, step: Step) -> bool:
        return self._chosen

    def on_train_end(self, step: Step) -> None:
        if not self._chosen:
            raise RuntimeError("blocks: none were chosen, because too few steps had finite gradients")

    def report(self) -> dict[str, float]:
        return {"changed_entries": sum(len(adapter.changed()) for adapter in self.adapters.values())}

    def state_dict(self) -> dict[str, Any]:
        entries = {name: adapter.saved() for name, adapter in self.adapters.items()}
        return {"entries": entries, "chosen": self._chosen, "sums": dict(self._sums)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._chosen = state["chosen"]
        for name, adapter in self.adapters.items():
            adapter.take_up(state["entries"][name])
        self._sums = {name: total.to(self.adapters[name].values.device) for name, total in state["sums"].items()}
