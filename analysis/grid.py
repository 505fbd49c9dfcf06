"""Rows → a table's cells: mean and sd over seeds, the best of each column, costs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from analysis import numbers, settings
from analysis.rows import Row, Rows
from analysis.runs import Run
from trainer.record import Memory, Record


@dataclass(frozen=True)
class Cell:
    """One row on one task. Without done runs, `mean` is None."""

    runs: tuple[Run, ...]
    failed: int
    mean: float | None
    sd: float | None  # ddof 1; None for fewer than two runs
    mean_text: str  # as printed: ×100 where the metric is a fraction
    sd_text: str

    @property
    def n(self) -> int:
        """The number of runs that the mean is over."""
        return len(self.runs)


@dataclass(frozen=True)
class Column:
    """One task. What its rows do not share is empty here and stands in the rows' labels."""

    task: str
    metric: str | None
    reading: str  # which checkpoint: "best on validation", "last"
    best: frozenset[int]  # indices of the rows with the best mean
    unmarked: str | None  # why no best is marked although there are values to compare


@dataclass(frozen=True)
class Cost:
    """A column of costs: the mean of `of` over runs; `text` for readers, `key` and all digits for csv."""

    header: str
    key: str
    of: Callable[[Record], float | None]
    text: Callable[[float], str]


@dataclass(frozen=True)
class Grid:
    """A table: `cells[row][column]`, `costs[row][cost]` over all tasks of the row."""

    rows: list[Row]
    columns: list[Column]
    cells: list[list[Cell]]
    costs: list[list[float | None]]
    fractions: dict[str, bool]  # metrics of the table → printed ×100?


def training_memory(memory: Memory) -> int | None:
    """Bytes that training needs. A sum with a part missing would look like a small one."""
    parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations)
    return None if None in parts else sum(part for part in parts if part is not None)


COSTS = (
    Cost("trainable", "trainable_start", lambda r: r.params.adapter_start, numbers.human),
    Cost("effective", "effective_end", lambda r: r.params.effective, numbers.human),
    Cost("head", "head", lambda r: r.params.head, numbers.human),
    Cost("memory MiB", "memory_bytes", lambda r: training_memory(r.memory), numbers.mebibytes),
    Cost("peak RSS MiB", "peak_rss_bytes", lambda r: r.memory.peak_rss, numbers.mebibytes),
    Cost("train s", "train_seconds", lambda r: r.time.train, lambda s: numbers.fixed(s, 1)),
    Cost("tokens/s", "tokens_per_second", lambda r: r.time.tokens_per_second, lambda s: numbers.fixed(s, 0)),
)

# Decimals at most: of a metric ×100, and of one as it is.
MOST = {True: 2, False: 4}


def build(rows: Rows) -> Grid:
    """Computes the whole table."""
    values: dict[str, list[float]] = {}
    for row in rows.rows:
        for runs in row.runs.values():
            for run in runs:
                values.setdefault(_metric(run), []).append(_value(run))
    fractions = {name: numbers.is_fraction(name, values[name]) for name in sorted(values)}
    cells = [[_cell(row, task, fractions) for task in rows.tasks] for row in rows.rows]
    columns = [_column(task, [line[place] for line in cells]) for place, task in enumerate(rows.tasks)]
    costs = [mean_costs(run for runs in row.runs.values() for run in runs) for row in rows.rows]
    return Grid(rows.rows, columns, cells, costs, fractions)


def mean_costs(runs: Iterable[Run]) -> list[float | None]:
    """The mean of each of `COSTS` over the runs that have it; None where none has."""
    records = [run.record for run in runs]
    means: list[float | None] = []
    for cost in COSTS:
        known = [value for value in map(cost.of, records) if value is not None]
        means.append(statistics.fmean(known) if known else None)
    return means


def _metric(run: Run) -> str:
    return run.record.metric.name or ""


def _value(run: Run) -> float:
    value = run.record.metric.value
    assert value is not None  # a done record without one is not trusted
    return value


def _cell(row: Row, task: str, fractions: dict[str, bool]) -> Cell:
    # .get: asking a defaultdict for a task would add it.
    runs = tuple(sorted(row.runs.get(task, ()), key=lambda run: (run.record.seed, run.record.run_id)))
    failed = len(row.failed.get(task, ()))
    if not runs:
        return Cell(runs, failed, None, None, "", "")
    values = [_value(run) for run in runs]
    # These two are exact: equal runs have their own value as mean and an sd of zero.
    mean = float(statistics.mean(values))
    sd = float(statistics.stdev(values)) if len(values) > 1 else None
    fraction = fractions[_metric(runs[0])]
    scale = 100 if fraction else 1
    places = numbers.decimals(None if sd is None else scale * sd, MOST[fraction])
    sd_text = "" if sd is None else numbers.fixed(scale * sd, places)
    return Cell(runs, failed, mean, sd, numbers.fixed(scale * mean, places), sd_text)


def _column(task: str, cells: Sequence[Cell]) -> Column:
    filled = [place for place, cell in enumerate(cells) if cell.runs]
    records = [cells[place].runs[0].record for place in filled]
    shared = {name: {settings.value(record, name) for record in records} for name in settings.COMPARABLE}
    one = {name: next(iter(found)) if len(found) == 1 else None for name, found in shared.items()}
    mixed = [settings.OBSERVED[name] for name, found in shared.items() if len(found) > 1]
    reading = checkpoint_text(one["metric.checkpoint"], one["metric.split"], one["data.protocol"])
    best: frozenset[int] = frozenset()
    unmarked = None
    if len(filled) > 1:
        if mixed:
            unmarked = f"the rows differ in {', '.join(mixed)}"
        elif one["metric.higher_is_better"] is None:
            unmarked = "no run says whether higher is better"
        else:
            best = _best(cells, filled, bool(one["metric.higher_is_better"]))
    return Column(task, one["metric.name"], reading, best, unmarked)


def _best(cells: Sequence[Cell], filled: Sequence[int], higher_is_better: bool) -> frozenset[int]:
    """The best mean and all that are printed with the same digits: a reader can't tell them apart."""
    top = (max if higher_is_better else min)(filled, key=lambda place: cells[place].mean or 0.0)
    ties = (cells[top].mean, cells[top].mean_text)
    return frozenset(p for p in filled if cells[p].mean == ties[0] or cells[p].mean_text == ties[1])


def checkpoint_text(checkpoint: str | None, split: str | None, protocol: str | None) -> str:
    """`best on validation`, `last`, …: which checkpoint a number is from, as a header says it."""
    if checkpoint != "best":
        return checkpoint or ""
    if protocol == "split":
        return "best on a part of train"
    # Under "dev" the split that is reported is the one on which the checkpoint was chosen.
    return f"best on {split}" if protocol == "dev" and split else "best"
