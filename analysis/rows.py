"""Records → the rows of a table.

A row is one variant on one model under one setting; a cell is a row on one task and holds
runs that differ in their seed alone. Where the runs of a cell differ in more, the variant
gets several rows, each labelled with what tells it apart (`lora rank=4`, `lora rank=8`):
never a mean over different things.

A setting that is the same within every cell, but not from task to task, does not split a
row: settings tuned per task are common, and notes.py names them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis import settings
from analysis.order import natural
from analysis.runs import Found, Run


@dataclass
class Row:
    """One row: `runs` and `failed` by task."""

    variant: str
    model: str
    model_shown: bool  # False where the whole table has one model
    told_apart: tuple[tuple[str, Any], ...]  # setting, value
    runs: dict[str, list[Run]] = field(default_factory=lambda: defaultdict(list))
    failed: dict[str, list[Run]] = field(default_factory=lambda: defaultdict(list))

    @property
    def settings(self) -> str:
        """What stands in the label after the variant's name: `rank=4 optim.lr=0.001`."""
        model = [f"model={settings.text(self.model)}"] if self.model_shown else []
        return " ".join([*model, *(settings.label(name, value) for name, value in self.told_apart)])

    @property
    def label(self) -> str:
        """The row's name in a table: the variant, then its settings."""
        return f"{self.variant} {self.settings}".rstrip()

    def sort_key(self) -> tuple[object, ...]:
        """By variant, then model, then value by value; names and numbers as a person sorts them."""
        values = tuple(settings.sort_key(value) for _, value in self.told_apart)
        return (natural(self.variant), natural(self.model), len(values), values)


@dataclass(frozen=True)
class Rows:
    """The rows in their order, and what a reader must know about how they were made."""

    rows: list[Row]
    tasks: list[str]
    # For each variant with several rows: settings that go along with those in its labels.
    along: dict[str, list[str]]
    seed_names: frozenset[str]


def build(found: Found) -> Rows:
    """The rows of all runs, done and failed, sorted as `Row.sort_key` says."""
    everything = [*found.done, *found.failed]
    seed_names = settings.seed_names(run.record for run in everything)
    several_models = len({run.record.model for run in everything}) > 1
    mixed = _mixed_columns(found.done)
    rows: list[Row] = []
    along: dict[str, list[str]] = {}
    by_variant: dict[str, tuple[list[Run], list[Run]]] = defaultdict(lambda: ([], []))
    for run in found.done:
        by_variant[run.record.variant][0].append(run)
    for run in found.failed:
        by_variant[run.record.variant][1].append(run)
    for variant, (done, failed) in by_variant.items():
        configured, hidden = _configured(done, failed, seed_names)
        observed = _observed(done, configured, mixed)
        rows.extend(_variant_rows(done, failed, configured, observed, several_models))
        if hidden:
            along[variant] = hidden
    rows.sort(key=Row.sort_key)
    tasks = sorted({run.record.task for run in everything}, key=natural)
    return Rows(rows, tasks, along, seed_names)


def _cells(runs: Iterable[Run]) -> list[list[Run]]:
    cells: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        cells[run.record.model, run.record.task].append(run)
    return list(cells.values())


def _mixed_columns(done: Iterable[Run]) -> set[str]:
    """What the runs of one task must have in common to be compared, and have not.

    Of two that differ together (another metric, another direction) the first is enough.
    """
    columns: dict[str, set[tuple[Any, ...]]] = defaultdict(set)
    for run in done:
        columns[run.record.task].add(settings.observed(run.record))
    mixed: set[str] = set()
    for values in columns.values():
        places: list[int] = []
        for place, name in enumerate(settings.COMPARABLE):
            if _groups(values, [*places, place]) > _groups(values, places):
                places.append(place)
                mixed.add(name)
    return mixed


def _groups(points: Iterable[tuple[Any, ...]], places: Sequence[int]) -> int:
    """How many different points there are when only these places are looked at."""
    return len({tuple(point[place] for place in places) for point in points})


def _configured(done: Sequence[Run], failed: Sequence[Run], seed_names: frozenset[str]) -> tuple[list[str], list[str]]:
    """The config settings that make a variant's labels, and the others that differ with them."""
    # A run that failed before its config was known says nothing about settings.
    told = [*done, *(run for run in failed if run.record.config)]
    cells = [[run.record for run in cell] for cell in _cells(told)]
    differ: set[str] = set().union(*(settings.differing(cell, seed_names) for cell in cells))
    typed = settings.typed(run.record for run in told) if differ else set()
    chosen = settings.telling(cells, differ, typed)
    return chosen, sorted(differ.difference(chosen), key=natural)


def _observed(done: Sequence[Run], configured: Sequence[str], mixed: set[str]) -> list[str]:
    """What runs reported, where the config does not explain how they differ."""
    # A point is (cell, what the config says, what was observed …): far fewer than runs.
    points = {
        (number, _values(run, configured), *settings.observed(run.record))
        for number, cell in enumerate(_cells(done))
        for run in cell
    }
    names: list[str] = []
    known = [1]
    for place, name in enumerate(settings.OBSERVED, start=2):
        splits_cells = _groups(points, [0, *known, place]) > _groups(points, [0, *known])
        # Other rows of the column differ in it: the label says which this one is, unless it
        # has a setting in it that says so.
        unexplained = _groups(points, [place]) == 1 or (_groups(points, [*known, place]) > _groups(points, known))
        if splits_cells or (name in mixed and unexplained):
            names.append(name)
            known.append(place)
    return names


def _values(run: Run, names: Iterable[str]) -> tuple[Any, ...]:
    return tuple(settings.value(run.record, name) for name in names)


def _variant_rows(
    done: Sequence[Run],
    failed: Sequence[Run],
    configured: Sequence[str],
    observed: Sequence[str],
    model_shown: bool,
) -> Iterator[Row]:
    rows: dict[tuple[Any, ...], Row] = {}

    def row(run: Run, names: Sequence[str], values: tuple[Any, ...]) -> Row:
        key = (run.record.model, *values)
        if key not in rows:
            told_apart = tuple(zip(names, values, strict=True))
            rows[key] = Row(run.record.variant, run.record.model, model_shown, told_apart)
        return rows[key]

    names = [*configured, *observed]
    for run in done:
        row(run, names, _values(run, names)).runs[run.record.task].append(run)
    with_runs = list(rows.values())
    for run in failed:
        # A failed run has no protocol to report: it belongs to every row that it may have joined.
        names = list(configured) if run.record.config else []
        values = _values(run, names)
        known = dict(zip(names, values, strict=True))
        homes = [
            home
            for home in with_runs
            if home.model == run.record.model and known.items() <= dict(home.told_apart).items()
        ]
        for home in homes or [row(run, names, values)]:
            home.failed[run.record.task].append(run)
    yield from rows.values()
