"""The loop's counters, which every checkpoint includes."""

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
    largest_batch: int = 0  # padded units of the largest batch so far, which determines `activations`
    activations: int = 0  # bytes; this and the next three are maxima over the steps
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    best_value: float | None = None
    best_step: int | None = None
    worse: int = 0  # evaluations since the best one
    logged_steps: int = 0  # steps in the two sums below
    task_loss: float = 0.0
    penalty: float = 0.0
    teacher: int = 0  # bytes of the weights of a teacher
    taught: int = 0  # forward passes of the teacher
    prepared: dict[str, Any] | None = None  # of `preparation.Prepared`, for a method with passes before training
    silent: list[str] | None = (
        None  # parameters trained from the start that had no gradient yet, see `observe_gradients`
    )

    def __post_init__(self) -> None:
        self._unread: list[tuple[str, torch.Tensor]] = []
        self._had_gradient: dict[str, torch.Tensor] = {}  # since `read`, as booleans on the device

    def add_later(self, **values: torch.Tensor) -> None:
        """Adds numbers on the device to the fields of these names at the next `read`, because reading synchronises."""
        self._unread.extend(values.items())

    def read(self) -> None:
        """Adds the pending numbers of `add_later`, and removes parameters that had a gradient from `silent`.

        The removal synchronises with the device once, and not at all once every parameter had a gradient.
        """
        for name, value in self._unread:
            setattr(self, name, getattr(self, name) + value.item())
        self._unread.clear()
        if self._had_gradient:
            flags = torch.stack(list(self._had_gradient.values())).tolist()
            names = {name for name, flag in zip(self._had_gradient, flags, strict=True) if flag}
            self.silent = [name for name in self.silent or () if name not in names]
            self._had_gradient.clear()

    def saved(self) -> dict[str, Any]:
        """Returns the fields, for a checkpoint."""
        self.read()
        return asdict(self)

    def restore(self, fields: Mapping[str, Any]) -> None:
        """Sets the fields that `saved` returned."""
        for name, value in fields.items():
            setattr(self, name, value)

    def count_bytes(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Updates the peaks of weights, gradients and optimizer state with their current bytes."""
        self.weights = max(self.weights, cost.weight_bytes(model))
        self.gradients = max(self.gradients, cost.gradient_bytes(model))
        self.optimizer = max(self.optimizer, cost.optimizer_bytes(optimizer))

    def observe_gradients(self, model: nn.Module) -> None:
        """Notes which of the `silent` parameters have a non-zero gradient in this step.

        A layer that no row reaches has no gradient, or a zero gradient if it was called with an empty input.
        """
        if self.silent == []:
            return
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad and p.numel()}
        self.silent = [name for name in (trained if self.silent is None else self.silent) if name in trained]
        for name in self.silent:
            if (gradient := trained[name].grad) is not None:
                flag = gradient.any()
                self._had_gradient[name] = flag | self._had_gradient[name] if name in self._had_gradient else flag
