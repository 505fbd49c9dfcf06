"""What a variant costs: the columns on the right of a table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from analysis import numbers
from trainer.record import Memory, Record


@dataclass(frozen=True)
class Cost:
    """A column: the mean of `of` over runs; `text` for readers, `key` and all digits for csv."""

    header: str
    key: str
    of: Callable[[Record], float | None]
    text: Callable[[float], str]


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
    Cost("trainable", "trainable_start", lambda r: r.params.adapter_start, numbers.human),
    Cost("effective", "effective_end", lambda r: r.params.effective, numbers.human),
    Cost("head", "head", lambda r: r.params.head, numbers.human),
    Cost("file MiB", "file_bytes", lambda r: r.memory.adapter_file, lambda b: numbers.fixed(b / 2**20, 2)),
)
MEMORY = Cost("memory MiB", "memory_bytes", lambda r: training_memory(r.memory), _MIB)
SPLIT = (
    Cost("weights MiB", "weights_bytes", lambda r: r.memory.weights, _MIB),
    Cost("gradients MiB", "gradients_bytes", lambda r: r.memory.gradients, _MIB),
    Cost("optimizer MiB", "optimizer_bytes", lambda r: r.memory.optimizer, _MIB),
    Cost("activations MiB", "activations_bytes", lambda r: r.memory.activations, _MIB),
)
PEAK = Cost("peak RSS MiB", "peak_rss_bytes", lambda r: r.memory.peak_rss, _MIB)
CUDA = Cost("peak CUDA MiB", "cuda_train_allocated_bytes", lambda r: r.memory.cuda_train_allocated, _MIB)
CUDA_SPLIT = (
    Cost("reserved MiB", "cuda_train_reserved_bytes", lambda r: r.memory.cuda_train_reserved, _MIB),
    Cost("eval CUDA MiB", "cuda_eval_allocated_bytes", lambda r: r.memory.cuda_eval_allocated, _MIB),
    Cost("eval reserved MiB", "cuda_eval_reserved_bytes", lambda r: r.memory.cuda_eval_reserved, _MIB),
)
TIME = (
    Cost("train s", "train_seconds", lambda r: r.time.train, lambda s: numbers.fixed(s, 1)),
    Cost("tokens/s", "tokens_per_second", lambda r: r.time.tokens_per_second, lambda s: numbers.fixed(s, 0)),
)

# All of them, as csv has them.
COSTS = (*PARAMETERS, MEMORY, *SPLIT, PEAK, CUDA, *CUDA_SPLIT, *TIME)


def shown(records: Iterable[Record], split: bool) -> tuple[Cost, ...]:
    """The columns of a table for people: of CUDA only where a run used it; `split`: memory in its parts."""
    cuda = any(record.memory.cuda_train_allocated is not None for record in records)
    parts = (*SPLIT, PEAK, *((CUDA, *CUDA_SPLIT) if cuda else ())) if split else (PEAK, *((CUDA,) if cuda else ()))
    return (*PARAMETERS, MEMORY, *parts, *TIME)


def means(records: Sequence[Record], costs: Sequence[Cost]) -> list[float | None]:
    """The mean of each cost over the records that have it; None where none has."""
    found: list[float | None] = []
    for cost in costs:
        known = [value for value in map(cost.of, records) if value is not None]
        found.append(statistics.fmean(known) if known else None)
    return found
