"""What the loop carries from step to step; part of every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from trainer.loop import cost


@dataclass
class Counters:
    """Sums, peaks and the best evaluation of a run so far."""

    skipped: int = 0
    tokens: int = 0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    largest_batch: int = 0  # padded tokens of the largest batch so far, the one that `activations` is measured on
    activations: int = 0  # bytes, as the next three: the largest over the steps
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    best_value: float | None = None
    best_step: int | None = None
    worse: int = 0  # evaluations since the best one
    logged_steps: int = 0  # steps that the two sums below belong to
    task_loss: float = 0.0
    penalty: float = 0.0
    prepared: dict[str, Any] | None = None  # of `preparation.Prepared`, for a method with passes before training
    silent: list[str] | None = None  # parameters trained from the start without a gradient yet, see `listen`

    def __post_init__(self) -> None:
        self._unread: list[tuple[str, torch.Tensor]] = []
        self._heard: dict[str, torch.Tensor] = {}  # whether a gradient came since `read`, not read off the device yet

    def add_later(self, **values: torch.Tensor) -> None:
        """Adds numbers on the device to the fields of these names when `read` is called: reading one waits for it."""
        self._unread.extend(values.items())

    def read(self) -> None:
        """Adds what `add_later` was given, and takes off `silent` what `listen` heard.

        For the latter it waits for the device once, and not at all once every parameter has been heard.
        """
        for name, value in self._unread:
            setattr(self, name, getattr(self, name) + value.item())
        self._unread.clear()
        if self._heard:
            there = torch.stack(list(self._heard.values())).tolist()
            heard = {name for name, some in zip(self._heard, there, strict=True) if some}
            self.silent = [name for name in self.silent or () if name not in heard]
            self._heard.clear()

    def saved(self) -> dict[str, Any]:
        """The fields, for a checkpoint."""
        self.read()
        return asdict(self)

    def restore(self, fields: Mapping[str, Any]) -> None:
        """Takes up what `saved` gave."""
        for name, value in fields.items():
            setattr(self, name, value)

    def count_bytes(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Takes what weights, gradients and optimizer hold now into their peaks."""
        self.weights = max(self.weights, cost.weight_bytes(model))
        self.gradients = max(self.gradients, cost.gradient_bytes(model))
        self.optimizer = max(self.optimizer, cost.optimizer_bytes(optimizer))

    def listen(self, model: nn.Module) -> None:
        """Notes to which of the `silent` parameters a gradient came in this step, one that is not all zero.

        A layer that no row reaches has none, or zeros where it was called with nothing.
        """
        if self.silent == []:
            return
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad and p.numel()}
        self.silent = [name for name in (trained if self.silent is None else self.silent) if name in trained]
        for name in self.silent:
            if (gradient := trained[name].grad) is not None:
                some = gradient.any()
                self._heard[name] = some | self._heard[name] if name in self._heard else some
