"""Determines the batches of each step from seed and step alone, so that a resumed run gets the remaining ones.

With several processes each gets its part of every batch (`trainer.machine.batch_shards`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch.utils.data import DataLoader, Sampler

from trainer.data.rows import EpochSampler, Rows
from trainer.machine import batch_shards, processes


def total_steps(rows: int, train: DictConfig, trains: bool = True) -> int:
    """Returns the number of optimizer steps of a run with `rows` training rows; trains: whether its variant does."""
    if not trains:
        return 0
    if train.max_steps is not None:
        return train.max_steps
    return max(1, math.ceil(train.epochs * steps_per_epoch(rows, train)))


def steps_per_epoch(rows: int, train: DictConfig) -> int:
    """Returns the number of optimizer steps per epoch of `rows` training rows."""
    batch = train.batch_size * (train.processes or 1)
    return math.ceil(math.ceil(rows / batch) / train.accumulate)


@dataclass(frozen=True)
class Batch:
    """Rows as tensors, padded to the longest row. weight: the divisor of the loss's sum, see `Objective.weigh`."""

    inputs: Mapping[str, torch.Tensor]
    labels: torch.Tensor
    weight: int

    def to(self, device: torch.device) -> Batch:
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Batch(inputs, self.labels.to(device), self.weight)

    def pin_memory(self) -> Batch:
        """Copies the batch to page-locked memory; torch's loader calls this."""
        inputs = {name: tensor.pin_memory() for name, tensor in self.inputs.items()}
        return Batch(inputs, self.labels.pin_memory(), self.weight)


class Collator:
    """Makes a `Batch` of rows; a row's `weight` is 1 by default.

    pad: makes the rows' tensors. weigh: returns the batch's weight, given its labels and the rows' weights.
    """

    def __init__(
        self,
        pad: Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]],
        weigh: Callable[[torch.Tensor, Sequence[int]], int] = lambda labels, rows: sum(rows),
    ) -> None:
        self.pad, self.weigh = pad, weigh

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        weights = [row.pop("weight", 1) for row in rows]
        inputs = dict(self.pad(rows))
        labels = inputs.pop("labels")
        return Batch(inputs, labels, self.weigh(labels, weights))


class Batches:
    """Loads the training rows in batches, and any rows of the run."""

    def __init__(
        self, rows: Rows, train: DictConfig, seed: int, collate: Collator, workers: int, device: torch.device
    ) -> None:
        self.device = device
        rows_per_step = train.batch_size * (train.processes or 1) * train.accumulate
        self.sampler = EpochSampler(rows, rows_per_step, train.group_by_length, seed)
        self.steps_per_epoch = steps_per_epoch(len(rows), train)
        self._batch_size, self._accumulate = train.batch_size, train.accumulate
        self._rows: torch.utils.data.Dataset = rows
        self._undivided = rows
        self._own_sampler: Sampler = self.sampler  # of this process
        if processes.count() > 1:
            self._rows = batch_shards.SharedRows(rows)
            self._own_sampler = batch_shards.DistributedSampler(
                self.sampler, train.batch_size, processes.rank(), processes.count()
            )
        self._options: dict[str, Any] = {
            "collate_fn": collate,
            "num_workers": workers,
            "pin_memory": device.type != "cpu",
        }

    def steps(self, done: int) -> Iterator[list[Batch]]:
        """Yields the batches of each step after the first `done` steps, epoch after epoch without end."""
        for epoch in itertools.count(done // self.steps_per_epoch):
            self.sampler.epoch = epoch
            skipped = max(0, done - epoch * self.steps_per_epoch)
            indices = list(self._own_sampler)[skipped * self._accumulate * self._batch_size :]
            # A new iterator draws a random number. In a resumed epoch this draw was made before the interruption.
            with torch.random.fork_rng(devices=[], enabled=skipped > 0):
                batches = iter(self.loaded(self._rows, self._batch_size, indices))
            while step_batches := list(itertools.islice(batches, self._accumulate)):
                yield step_batches

    def single(self, count: int) -> Iterator[Batch]:
        """Yields this process's share of the first `count` training rows, one a batch.

        Raises `ValueError` for more rows than there are.
        """
        if count > len(self._undivided):
            raise ValueError(f"samples: {count}, allowed: at most the {len(self._undivided)} training rows")
        self.sampler.epoch = 0
        indices = list(self.sampler)[:count][processes.rank() :: processes.count()]
        return iter(self.loaded(self._undivided, 1, indices))

    def loaded(self, rows: torch.utils.data.Dataset, size: int, indices: Any = None) -> DataLoader:
        """Loads `rows` in batches of `size`: those at `indices` in this order, or all."""
        return DataLoader(rows, size, sampler=indices, **self._options)
