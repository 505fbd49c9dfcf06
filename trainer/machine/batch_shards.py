"""The rows of one process: its part of every batch that the processes of a run share.

The batch that a single process with n·b rows would see is cut into n parts, and process p gets the p-th: rows p·b to
(p+1)·b. The last batch of an epoch, which may be smaller, is cut into parts that differ by at most one row. With fewer
rows than processes, one that gets none goes through the batch's first row with a weight of 0, so that all make the
same steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from trainer.data.rows import Order, Rows


class Shard(torch.utils.data.Sampler):
    """The places of process `rank` of `count`, in the order of `order`, in batches of `batch` rows.

    With every place comes its weight: 1, or 0 for a row that another process has.
    """

    def __init__(self, order: Order, batch: int, rank: int, count: int) -> None:
        self.order, self.batch, self.rank, self.count = order, batch, rank, count

    def __len__(self) -> int:
        whole, rest = divmod(len(self.order), self.batch * self.count)
        return whole * self.batch + (max(1, len(self._part(range(rest)))) if rest else 0)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        places = list(self.order)
        for start in range(0, len(places), self.batch * self.count):
            shared = places[start : start + self.batch * self.count]
            mine = self._part(shared)
            for place in mine or shared[:1]:
                yield place, int(bool(mine))

    def _part(self, shared: Any) -> Any:
        small, larger = divmod(len(shared), self.count)
        start = self.rank * small + min(self.rank, larger)
        return shared[start : start + small + (self.rank < larger)]


class SharedRows(torch.utils.data.Dataset):
    """`rows` by what `Shard` yields; the weight stands in the row."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        return self.rows[place[0]] | {"weight": place[1]}


def evaluated(rows: int, batch: int, rank: int, count: int) -> list[int]:
    """Places of the rows that process `rank` evaluates: every `count`-th of the batches that one process would see.

    All evaluate as many, for a divided backbone is put together in step: who has none left takes the last again.
    """
    last = math.ceil(rows / batch) - 1
    numbers = [min(first + rank, last) for first in range(0, last + 1, count)]
    return [place for number in numbers for place in range(rows)[number * batch : (number + 1) * batch]]
