"""The columns of costs: parameters, memory and time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from analysis.text import numbers
from trainer.record import Memory, Record


@dataclass(frozen=True)
class Cost:
    """A column: the mean over runs of the sum of the fields `names`. text: its format. key: its name in csv."""

    header: str
    key: str
    names: tuple[str, ...]  # fields of a record
    text: Callable[[float], str]
    higher_is_better: bool = False

    @property
    def name(self) -> str:
        """The name on the command line, which is the header without its unit: `memory`, `peak-rss`, `tokens/s`."""
        return self.header.removesuffix(" MiB").removesuffix(" s").replace(" ", "-").lower()

    def of(self, record: Record) -> float | None:
        """The cost of one run; None if a part is missing, because the sum of the rest would look small."""
        return _sum([attrgetter(name)(record) for name in self.names])


def _sum(parts: Sequence[float | None]) -> float | None:
    """The sum; None if a part is missing."""
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


_PARTS = ("memory.weights", "memory.gradients", "memory.optimizer", "memory.activations")


def training_memory(memory: Memory) -> int | None:
    """Bytes that training needs: weights, gradients, optimizer state, saved activations.

    None if a part is missing, because the sum of the rest would look small.
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
_TOKENS = "time.tokens_per_second"
TIME = (
    Cost("train s", "train_seconds", ("time.train",), lambda s: numbers.fixed(s, 1)),
    Cost(
        "tokens/s",
        "tokens_per_second",
        ("time.tokens_per_second",),
        lambda s: numbers.fixed(s, 0),
        higher_is_better=True,
    ),
)

RETENTION = (
    Cost("general before", "retention_before", ("retention.before",), lambda p: numbers.fixed(p, 2)),
    Cost("general after", "retention_after", ("retention.after",), lambda p: numbers.fixed(p, 2)),
)

# All columns, as csv has them.
COSTS = (*PARAMETERS, MEMORY, *SPLIT, PEAK, CUDA, *CUDA_SPLIT, *TIME, *RETENTION)


_NAMES = tuple({name: None for cost in COSTS for name in cost.names})
_ALL: Callable[[Record], tuple[float | None, ...]] = attrgetter(*_NAMES)


class Means:
    """The mean of each of `COSTS` over runs."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        by_name = dict(zip(_NAMES, zip(*map(_ALL, records), strict=True), strict=False))  # values by field
        self._means: dict[str, float] = {}
        for cost in COSTS:
            columns = [by_name.get(name, ()) for name in cost.names]
            values = columns[0] if len(columns) == 1 else map(_sum, zip(*columns, strict=True))
            known = [value for value in values if value is not None]
            if known:
                self._means[cost.key] = math.fsum(known) / len(known)

    def of(self, cost: Cost) -> float | None:
        """The mean of one cost; None if no run has it."""
        return self._means.get(cost.key)


NO_MEANS = Means()


def shown(rows: Iterable[Means], split: bool) -> tuple[Cost, ...]:
    """The usual columns. CUDA's are shown if a run used it, and general texts' if one was measured on them.

    split: whether the parts of the memory are shown.
    """
    rows = list(rows)
    general = RETENTION if any(means.of(RETENTION[1]) is not None for means in rows) else ()
    cuda = any(means.of(CUDA) is not None for means in rows)
    parts = (*SPLIT, PEAK, *((CUDA, *CUDA_SPLIT) if cuda else ())) if split else (PEAK, *((CUDA,) if cuda else ()))
    return (*PARAMETERS, MEMORY, *parts, *TIME, *general)
