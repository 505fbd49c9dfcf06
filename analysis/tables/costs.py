"""What a variant costs: the columns on the right of a table."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter

from analysis.text import numbers
from trainer.record import Memory, Record


@dataclass(frozen=True)
class Cost:
    """A column: the mean over runs of the sum of `names`; `text` for readers, `key` and all digits for csv."""

    header: str
    key: str
    names: tuple[str, ...]  # of a record's row
    text: Callable[[float], str]

    def of(self, record: Record) -> float | None:
        """What one run took; None where a part is missing: the sum of the others would look like a small one."""
        values = [get(record) for get in self._getters]
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == len(values) else None

    @functools.cached_property
    def _getters(self) -> list[Callable[[Record], float | None]]:
        return [attrgetter(name) for name in self.names]


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


class Means:
    """The mean of each of `COSTS` over some runs."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        values: dict[str, list[float]] = {cost.key: [] for cost in COSTS}
        for record in records:
            for cost in COSTS:
                value = cost.of(record)
                if value is not None:
                    values[cost.key].append(value)
        self._means = {key: math.fsum(own) / len(own) for key, own in values.items() if own}

    def of(self, cost: Cost) -> float | None:
        """That of one cost; None where no run has it."""
        return self._means.get(cost.key)


NO_MEANS = Means()


def shown(rows: Iterable[Means], split: bool) -> tuple[Cost, ...]:
    """The columns of a table for people: of CUDA only where a run used it; `split`: memory in its parts."""
    cuda = any(means.of(CUDA) is not None for means in rows)
    parts = (*SPLIT, PEAK, *((CUDA, *CUDA_SPLIT) if cuda else ())) if split else (PEAK, *((CUDA,) if cuda else ()))
    return (*PARAMETERS, MEMORY, *parts, *TIME)
