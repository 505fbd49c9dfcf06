"""The rows of one process: its part of every batch that the processes of a run share.

The batch that a single process with n·b rows would see is split into n parts, and process p gets rows p·b to (p+1)·b.
The last batch of an epoch may be smaller; its parts differ by at most one row. If it has fewer rows than there are
processes, a process without a row processes the batch's first row with weight 0, so that all make the same steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from trainer.data.rows import EpochSampler, Rows


class DistributedSampler(torch.utils.data.Sampler):
    """The indices of process `rank` of `count`, in the order of `order` and in batches of `batch` rows.

    Each index has a weight: 1, or 0 for a row that belongs to another process.
    """

    def __init__(self, order: EpochSampler, batch: int, rank: int, count: int) -> None:
        self.order, self.batch, self.rank, self.count = order, batch, rank, count

    def __len__(self) -> int:
        whole, rest = divmod(len(self.order), self.batch * self.count)
        return whole * self.batch + (max(1, len(self._part(range(rest)))) if rest else 0)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        indices = list(self.order)
        for start in range(0, len(indices), self.batch * self.count):
            shared = indices[start : start + self.batch * self.count]
            mine = self._part(shared)
            for index in mine or shared[:1]:
                yield index, int(bool(mine))

    def _part(self, shared: Any) -> Any:
        small, larger = divmod(len(shared), self.count)
        start = self.rank * small + min(self.rank, larger)
        return shared[start : start + small + (self.rank < larger)]


class SharedRows(torch.utils.data.Dataset):
    """`rows` indexed by what `DistributedSampler` yields; the weight is added to the row."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, weighted: tuple[int, int]) -> dict[str, Any]:
        index, weight = weighted
        return self.rows[index] | {"weight": weight}


def evaluated(rows: int, batch: int, rank: int, count: int) -> list[int]:
    """Indices of the rows that process `rank` evaluates: every `count`-th batch of a single process.

    All processes evaluate the same number of batches, because a sharded backbone is gathered by all at once. A process
    without a batch of its own repeats the last one.
    """
    last = math.ceil(rows / batch) - 1
    numbers = [min(first + rank, last) for first in range(0, last + 1, count)]
    return [index for number in numbers for index in range(rows)[number * batch : (number + 1) * batch]]
