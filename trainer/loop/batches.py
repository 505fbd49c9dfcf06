"""The batches that each step of a run trains on, a function of seed and step: a resumed run gets those that remain.

In several processes (`trainer.machine.batch_shards`) each has its part of every batch.
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

from trainer.data.rows import Order, Rows
from trainer.machine import batch_shards, processes


def total_steps(rows: int, train: DictConfig) -> int:
    """Optimizer steps of a run over `rows` training rows."""
    if train.max_steps is not None:
        return train.max_steps
    return max(1, math.ceil(train.epochs * steps_per_epoch(rows, train)))


def steps_per_epoch(rows: int, train: DictConfig) -> int:
    batch = train.batch_size * (train.processes or 1)
    return math.ceil(math.ceil(rows / batch) / train.accumulate)


@dataclass(frozen=True)
class Batch:
    """Rows as tensors, padded to the longest. weight: how much of them counts in the loss, see `Objective.weigh`."""

    inputs: Mapping[str, torch.Tensor]
    labels: torch.Tensor
    weight: int

    def to(self, device: torch.device) -> Batch:
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Batch(inputs, self.labels.to(device), self.weight)

    def pin_memory(self) -> Batch:
        """The same in page-locked memory; torch's loader asks for it."""
        inputs = {name: tensor.pin_memory() for name, tensor in self.inputs.items()}
        return Batch(inputs, self.labels.pin_memory(), self.weight)


class Collator:
    """Makes a `Batch` of rows; a row's `weight` is 1 unless it says otherwise.

    pad: makes tensors of them. weigh: says of labels and of the rows' weights how much of the batch counts.
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
    """The training rows in batches, and the way to load any rows of the run."""

    def __init__(
        self, rows: Rows, train: DictConfig, seed: int, collate: Collator, workers: int, device: torch.device
    ) -> None:
        self.device = device
        self.order = Order(
            rows, train.batch_size * (train.processes or 1) * train.accumulate, train.group_by_length, seed
        )
        self.steps_per_epoch = steps_per_epoch(len(rows), train)
        self._batch_size, self._accumulate = train.batch_size, train.accumulate
        self._rows: torch.utils.data.Dataset = rows
        self._alone = rows
        self._sampler: Sampler = self.order
        if processes.count() > 1:
            self._rows = batch_shards.SharedRows(rows)
            self._sampler = batch_shards.Shard(self.order, train.batch_size, processes.rank(), processes.count())
        self._how: dict[str, Any] = {"collate_fn": collate, "num_workers": workers, "pin_memory": device.type != "cpu"}

    def steps(self, done: int) -> Iterator[list[Batch]]:
        """The batches of each step after the first `done` ones, epoch after epoch without end."""
        for epoch in itertools.count(done // self.steps_per_epoch):
            self.order.epoch = epoch
            skipped = max(0, done - epoch * self.steps_per_epoch)
            places = list(self._sampler)[skipped * self._accumulate * self._batch_size :]
            # An iterator draws a number when it is made. That of a resumed epoch was drawn before the interruption.
            with torch.random.fork_rng(devices=[], enabled=skipped > 0):
                batches = iter(self.loaded(self._rows, self._batch_size, places))
            while found := list(itertools.islice(batches, self._accumulate)):
                yield found

    def single(self, count: int) -> Iterator[Batch]:
        """This process's share of the first `count` rows of training, one a batch. Raises `ValueError` for too many."""
        if count > len(self._alone):
            raise ValueError(f"samples: {count}, allowed: at most the {len(self._alone)} training rows")
        self.order.epoch = 0
        mine = list(self.order)[:count][processes.rank() :: processes.count()]
        return iter(self.loaded(self._alone, 1, mine))

    def loaded(self, rows: torch.utils.data.Dataset, size: int, places: Any = None) -> DataLoader:
        """`rows` in batches of `size`: those at `places` in that order, or all."""
        return DataLoader(rows, size, sampler=places, **self._how)
