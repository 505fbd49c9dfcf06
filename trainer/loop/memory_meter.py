"""Measures the peaks of a training's memory: saved activations, weights, gradients and optimizer state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from trainer.loop import cost
from trainer.loop.counters import Counters
from variants.core.variant import Step


class MemoryMeter:
    """Updates the peaks in `counters`. log_every: steps after which all bytes are counted again."""

    def __init__(self, model: nn.Module, counters: Counters, log_every: int) -> None:
        self._model, self._counters, self._log_every = model, counters, log_every
        self._activations = cost.SavedActivations(model)
        self._counted: Any = None  # the trained tensors when bytes were last counted

    @contextlib.contextmanager
    def forward(self, size: int) -> Iterator[None]:
        """Counts the saved activations of a forward pass, if its batch of `size` units is the largest so far."""
        counters = self._counters
        if size < counters.largest_batch:
            yield
            return
        counters.largest_batch = size
        with self._activations.counting():
            yield
        # A later batch of the same size may need more, because ranks grow.
        counters.activations = max(counters.activations, self._activations.bytes)

    def moved(self, step: Step) -> None:
        """Counts weights, gradients and optimizer state, and notes which parameters have a gradient.

        Counting all storages takes more than a percent of a small step. So it is done only in logged steps, and when
        the trained tensors have changed in number, size or state since the last count.
        """
        self._counters.observe_gradients(self._model)
        optimizer = step.optimizer
        trained = [(p.numel(), p.grad is None) for group in optimizer.param_groups for p in group["params"]]
        current = (trained, len(optimizer.state))
        if current != self._counted or step.index % self._log_every == 0:
            self._counted = current
            self._counters.count_bytes(self._model, optimizer)
