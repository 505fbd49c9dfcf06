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
from analysis.reading import Config
from analysis.runs import Found, Run
from trainer.record import Record


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


@dataclass(frozen=True)
class _Point:
    """Done runs that nothing but their seed tells apart: all that is said of one holds for the others."""

    runs: list[Run]

    @property
    def record(self) -> Record:
        return self.runs[0].record


def build(found: Found) -> Rows:
    """The rows of all runs, done and failed, sorted as `Row.sort_key` says."""
    everything = [*found.done, *found.failed]
    seed_names = settings.seed_names(run.record for run in everything)
    several_models = len({run.record.model for run in everything}) > 1
    rows: list[Row] = []
    along: dict[str, list[str]] = {}
    done, failed = _points(found.done, seed_names), _points(found.failed, seed_names)
    mixed = _mixed_columns(done)
    by_variant: dict[str, tuple[list[_Point], list[_Point]]] = defaultdict(lambda: ([], []))
    for number, points in enumerate((done, failed)):
        for point in points:
            by_variant[point.record.variant][number].append(point)
    for variant, (own, own_failed) in by_variant.items():
        configured, hidden = _configured(own, own_failed, seed_names)
        observed = _observed(own, configured, mixed)
        rows.extend(_variant_rows(own, own_failed, configured, observed, several_models))
        if hidden:
            along[variant] = hidden
    rows.sort(key=Row.sort_key)
    tasks = sorted({run.record.task for run in everything}, key=natural)
    return Rows(rows, tasks, along, seed_names)


def _points(runs: Iterable[Run], seed_names: frozenset[str]) -> list[_Point]:
    """The points of some runs: far fewer than runs where there are several seeds."""
    points: dict[tuple[Any, ...], list[Run]] = {}
    own_seeds: dict[int, tuple[Any, ...]] = {}
    configs = [(run, Config.of(run.record.config)) for run in runs]  # held, so that no two have one id
    for run, config in configs:
        record = run.record
        seeds = own_seeds.get(id(config.seeds))
        if seeds is None:
            # A seed that is not the run's is a setting like any other.
            others = {name: entry for name, entry in config.seeds.items() if settings.CONFIG + name not in seed_names}
            seeds = own_seeds[id(config.seeds)] = tuple(others.items())
        key = (id(config.base), seeds, record.variant, record.task, record.model, settings.observed(record))
        points.setdefault(key, []).append(run)
    return [_Point(own) for own in points.values()]


def _cells(points: Iterable[_Point]) -> list[list[_Point]]:
    cells: dict[tuple[str, str], list[_Point]] = defaultdict(list)
    for point in points:
        cells[point.record.model, point.record.task].append(point)
    return list(cells.values())


def _mixed_columns(done: Iterable[_Point]) -> set[str]:
    """What the runs of one task must have in common to be compared, and have not.

    Of two that differ together (another metric, another direction) the first is enough.
    """
    columns: dict[str, set[tuple[Any, ...]]] = defaultdict(set)
    for point in done:
        columns[point.record.task].add(settings.observed(point.record))
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


def _configured(
    done: Sequence[_Point], failed: Sequence[_Point], seed_names: frozenset[str]
) -> tuple[list[str], list[str]]:
    """The config settings that make a variant's labels, and the others that differ with them."""
    # A run that failed before its config was known says nothing about settings.
    told = [*done, *(point for point in failed if point.record.config)]
    cells = [[point.record for point in cell] for cell in _cells(told)]
    differ: set[str] = set().union(*(settings.differing(cell, seed_names) for cell in cells))
    typed = settings.typed(run.record for point in told for run in point.runs) if differ else set()
    chosen = settings.telling(cells, differ, typed)
    return chosen, sorted(differ.difference(chosen), key=natural)


def _observed(done: Sequence[_Point], configured: Sequence[str], mixed: set[str]) -> list[str]:
    """What runs reported, where the config does not explain how they differ."""
    cells = [[settings.observed(point.record) for point in cell] for cell in _cells(done)]
    within = {
        name for place, name in enumerate(settings.OBSERVED) if any(len({o[place] for o in c}) > 1 for c in cells)
    }
    if not within and not mixed:
        return []
    points = {
        (number, _values(point, configured), *settings.observed(point.record))
        for number, cell in enumerate(_cells(done))
        for point in cell
    }
    names: list[str] = []
    known = [1]
    for place, name in enumerate(settings.OBSERVED, start=2):
        splits_cells = name in within and _groups(points, [0, *known, place]) > _groups(points, [0, *known])
        # Other rows of the column differ in it: the label says which this one is, unless it
        # has a setting in it that says so.
        unexplained = _groups(points, [place]) == 1 or (_groups(points, [*known, place]) > _groups(points, known))
        if splits_cells or (name in mixed and unexplained):
            names.append(name)
            known.append(place)
    return names


def _values(point: _Point, names: Iterable[str]) -> tuple[Any, ...]:
    return tuple(settings.value(point.record, name) for name in names)


def _variant_rows(
    done: Sequence[_Point],
    failed: Sequence[_Point],
    configured: Sequence[str],
    observed: Sequence[str],
    model_shown: bool,
) -> Iterator[Row]:
    rows: dict[tuple[Any, ...], Row] = {}

    def row(record: Record, names: Sequence[str], values: tuple[Any, ...]) -> Row:
        key = (record.model, *values)
        if key not in rows:
            told_apart = tuple(zip(names, values, strict=True))
            rows[key] = Row(record.variant, record.model, model_shown, told_apart)
        return rows[key]

    names = [*configured, *observed]
    for point in done:
        row(point.record, names, _values(point, names)).runs[point.record.task] += point.runs
    with_runs = list(rows.values())
    for point in failed:
        # A failed run has no protocol to report: it belongs to every row that it may have joined.
        record = point.record
        names = list(configured) if record.config else []
        values = _values(point, names)
        known = dict(zip(names, values, strict=True))
        homes = [
            home for home in with_runs if home.model == record.model and known.items() <= dict(home.told_apart).items()
        ]
        for home in homes or [row(record, names, values)]:
            home.failed[record.task] += point.runs
    yield from rows.values()
