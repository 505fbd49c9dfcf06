"""Two rows on one task → pairs of runs that have their seed in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from analysis.records import settings
from analysis.records.runs import Run
from analysis.tables.rows import Row

# Differences of numbers of two kinds mean nothing; what else the sides differ in is only flagged.
_SAME_KIND = ("metric.name", "metric.split", "metric.higher_is_better")


@dataclass(frozen=True)
class Paired:
    """Rows A and B on one task. Where `refused` says why, there are no pairs."""

    a: Row
    b: Row
    task: str
    pairs: tuple[tuple[Run, Run], ...] = ()  # of A and B, by seed
    only_a: tuple[int, ...] = ()  # seeds of the runs that have no partner
    only_b: tuple[int, ...] = ()
    repeated: tuple[int, ...] = ()  # seeds that a side has more than once: which run is the pair's?
    refused: str | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the pairs, ascending."""
        return tuple(run.record.seed for run, _ in self.pairs)

    @property
    def metric(self) -> str:
        """The metric's name; empty where the runs have none."""
        return (self.pairs[0][0].record.metric.name or "") if self.pairs else ""

    @property
    def higher_is_better(self) -> bool | None:
        """As the runs say; None where they don't."""
        return self.pairs[0][0].record.metric.higher_is_better if self.pairs else None

    @property
    def percent(self) -> bool | None:
        """Whether the metric is printed ×100, as the runs say; None where none does."""
        said = (run.record.metric.percent for pair in self.pairs for run in pair)
        return next((percent for percent in said if percent is not None), None)

    def values(self) -> tuple[list[float], list[float]]:
        """The metric of A's and of B's runs, pair by pair."""
        return [_value(a) for a, _ in self.pairs], [_value(b) for _, b in self.pairs]


def pair(a: Row, b: Row, task: str) -> Paired | None:
    """The pairs of two rows on a task; None where neither row ever ran on it."""
    none: Sequence[Run] = ()
    runs_a, runs_b = a.runs.get(task, none), b.runs.get(task, none)
    if not (runs_a or runs_b or a.failed.get(task) or b.failed.get(task)):
        return None
    without = [row.label for row, runs in ((a, runs_a), (b, runs_b)) if not runs]
    if without:
        return Paired(a, b, task, refused=f"no run of {' or of '.join(without)} is done")
    mixed = list(_kinds(runs_a[0], runs_b[0]))
    if mixed:
        return Paired(a, b, task, refused="; ".join(mixed))
    by_seed_a, by_seed_b = _by_seed(runs_a), _by_seed(runs_b)
    repeated = {seed for runs in (runs_a, runs_b) for seed in _repeated(runs)}
    shared = sorted((by_seed_a.keys() & by_seed_b.keys()) - repeated)
    return Paired(
        *(a, b, task),
        pairs=tuple((by_seed_a[seed], by_seed_b[seed]) for seed in shared),
        only_a=tuple(sorted(by_seed_a.keys() - by_seed_b.keys() - repeated)),
        only_b=tuple(sorted(by_seed_b.keys() - by_seed_a.keys() - repeated)),
        repeated=tuple(sorted(repeated)),
        refused=None if shared else "no seed is on both sides exactly once",
    )


def _kinds(a: Run, b: Run) -> Iterator[str]:
    # Within a row the runs on a task are of one kind (analysis/rows.py): the first speaks for all.
    for name, left, right in zip(
        settings.PROTOCOL, settings.protocol_of(a.record), settings.protocol_of(b.record), strict=True
    ):
        if name in _SAME_KIND and left != right:
            yield f"{settings.PROTOCOL[name]} {settings.text(left)} and {settings.text(right)}"


def _by_seed(runs: Iterable[Run]) -> dict[int, Run]:
    return {run.record.seed: run for run in runs}


def _repeated(runs: Iterable[Run]) -> list[int]:
    return [seed for seed, count in Counter(run.record.seed for run in runs).items() if count > 1]


def _value(run: Run) -> float:
    value = run.record.metric.value
    assert value is not None  # a done record without one is not trusted
    return value
