"""What a variant costs: the columns on the right of a table."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.text import numbers
from trainer.record import Memory


@dataclass(frozen=True)
class Cost:
    """A column: the mean over runs of the sum of `names`; `text` for readers, `key` and all digits for csv."""

    header: str
    key: str
    names: tuple[str, ...]  # of a record's row
    text: Callable[[float], str]


_PARTS = ("memory.weights", "memory.gradients", "memory.optimizer", "memory.activations")


def training_memory(memory: Memory) -> int | None:
    """Bytes that training needs: weights, gradients, optimizer state, saved activations.

    None where a part is missing: the sum of the others would look like a small one.
    """
    weights, gradients = memory.weights, memory.gradients
    optimizer, activations = memory.optimizer, memory.activations
    if weights is None or gradients is None or optimizer is None or activations is None:
        return None
    return weights + gradients + optimizer + activations


_MIB = numbers.mebibytes
PARAMETERS = (
    Cost("trainable", "trainable_start", ("params.adapter_start",), numbers.human),
    Cost("effective", "effective_end", ("params.effective",), numbers.human),
    Cost("head", "head", ("params.head",), numbers.human),
    Cost("file MiB", "file_bytes", ("memory.adapter_file",), lambda b: numbers.fixed(b / 2**20, 2)),
)
MEMORY = Cost("memory MiB", "memory_bytes", _PARTS, _MIB)
SPLIT = (
    Cost("weights MiB", "weights_bytes", ("memory.weights",), _MIB),
    Cost("gradients MiB", "gradients_bytes", ("memory.gradients",), _MIB),
    Cost("optimizer MiB", "optimizer_bytes", ("memory.optimizer",), _MIB),
    Cost("activations MiB", "activations_bytes", ("memory.activations",), _MIB),
)
PEAK = Cost("peak RSS MiB", "peak_rss_bytes", ("memory.peak_rss",), _MIB)
CUDA = Cost("peak CUDA MiB", "cuda_train_allocated_bytes", ("memory.cuda_train_allocated",), _MIB)
CUDA_SPLIT = (
    Cost("reserved MiB", "cuda_train_reserved_bytes", ("memory.cuda_train_reserved",), _MIB),
    Cost("eval CUDA MiB", "cuda_eval_allocated_bytes", ("memory.cuda_eval_allocated",), _MIB),
    Cost("eval reserved MiB", "cuda_eval_reserved_bytes", ("memory.cuda_eval_reserved",), _MIB),
)
TIME = (
    Cost("train s", "train_seconds", ("time.train",), lambda s: numbers.fixed(s, 1)),
    Cost("tokens/s", "tokens_per_second", ("time.tokens_per_second",), lambda s: numbers.fixed(s, 0)),
)

# All of them, as csv has them.
COSTS = (*PARAMETERS, MEMORY, *SPLIT, PEAK, CUDA, *CUDA_SPLIT, *TIME)


_PLACE = {cost.key: place for place, cost in enumerate(COSTS)}

Values = list[list[float]]  # for each of COSTS, those of the runs that have it


def values(columns: Mapping[str, Sequence[Any]]) -> Values:
    """The costs of some runs, of which `columns` has by name what a row has."""
    found: Values = []
    for cost in COSTS:
        parts = [columns[name] for name in cost.names]
        if len(parts) == 1:
            found.append([value for value in parts[0] if value is not None])
        else:  # the sum of what is there would look like a small one
            found.append([sum(each) for each in zip(*parts, strict=True) if None not in each])
    return found


class Totals:
    """Sums of each cost over any number of runs, in a fixed space. Exact: no order of the runs changes a digit."""

    _MOST = 64  # terms of a sum

    def __init__(self) -> None:
        self._counts = [0] * len(COSTS)
        self._terms: Values = [[] for _ in COSTS]

    def add(self, more: Values) -> None:
        """Adds the costs of some runs."""
        for place, own in enumerate(more):
            self._counts[place] += len(own)
            self._terms[place] += own
            if len(self._terms[place]) > self._MOST:
                self._terms[place] = _fewer(self._terms[place])

    def means(self) -> Means:
        """The mean of each cost over the runs that have it."""
        return Means(
            math.fsum(terms) / count if count else math.nan
            for terms, count in zip(self._terms, self._counts, strict=True)
        )


def _fewer(terms: Sequence[float]) -> list[float]:
    """A few numbers with exactly the same sum."""
    found: list[float] = []
    # fsum rounds once: what it leaves is a number, too, until nothing is left.
    while rest := math.fsum([*terms, *(-part for part in found)]):
        found.append(rest)
    return found


class Means:
    """The mean of each of `COSTS`."""

    __slots__ = ("_values",)

    def __init__(self, means: Iterable[float] = ()) -> None:
        """means: nan where no run has a cost."""
        self._values = array("d", means)

    def of(self, cost: Cost) -> float | None:
        """That of one cost; None where no run has it."""
        mean = self._values[_PLACE[cost.key]] if self._values else math.nan
        return None if math.isnan(mean) else mean


NO_MEANS = Means()


def shown(rows: Iterable[Means], split: bool) -> tuple[Cost, ...]:
    """The columns of a table for people: of CUDA only where a run used it; `split`: memory in its parts."""
    cuda = any(means.of(CUDA) is not None for means in rows)
    parts = (*SPLIT, PEAK, *((CUDA, *CUDA_SPLIT) if cuda else ())) if split else (PEAK, *((CUDA,) if cuda else ()))
    return (*PARAMETERS, MEMORY, *parts, *TIME)
