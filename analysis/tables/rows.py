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

from analysis.records import settings
from analysis.records.grouping import Point
from analysis.records.runs import Found, Run, ordered
from analysis.text.sorting import natural


@dataclass
class Row:
    """One row: by task its done runs and its failed ones, by seed, and the points that they are."""

    variant: str
    model: str
    model_shown: bool  # False where the whole table has one model
    told_apart: tuple[tuple[str, Any], ...]  # setting, value
    points: dict[str, list[Point]] = field(default_factory=dict)
    failed_points: dict[str, list[Point]] = field(default_factory=dict)
    runs: dict[str, list[Run]] = field(default_factory=dict)
    failed: dict[str, list[Run]] = field(default_factory=dict)

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


def build(found: Found) -> Rows:
    """The rows of all runs, done and failed, sorted as `Row.sort_key` says."""
    done, failed = found.having("done"), found.having("failed")
    several_models = len({point.model for point in (*done, *failed)}) > 1
    rows: list[Row] = []
    along: dict[str, list[str]] = {}
    mixed = _mixed_columns(done)
    by_variant: dict[str, tuple[list[Point], list[Point]]] = defaultdict(lambda: ([], []))
    for number, points in enumerate((done, failed)):
        for point in points:
            by_variant[point.variant][number].append(point)
    for variant, (own, own_failed) in by_variant.items():
        configured, hidden = _configured(own, own_failed)
        observed = _observed(own, configured, mixed)
        rows.extend(_variant_rows(own, own_failed, configured, observed, several_models))
        if hidden:
            along[variant] = hidden
    for row in rows:
        row.runs = {task: ordered(points) for task, points in row.points.items()}
        row.failed = {task: ordered(points) for task, points in row.failed_points.items()}
    rows.sort(key=Row.sort_key)
    tasks = sorted({point.task for point in (*done, *failed)}, key=natural)
    return Rows(rows, tasks, along)


def _cells(points: Iterable[Point]) -> list[list[Point]]:
    cells: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for point in points:
        cells[point.model, point.task].append(point)
    return list(cells.values())


def _mixed_columns(done: Iterable[Point]) -> set[str]:
    """What the runs of one task must have in common to be compared, and have not.

    Of two that differ together (another metric, another direction) the first is enough.
    """
    columns: dict[str, set[tuple[Any, ...]]] = defaultdict(set)
    for point in done:
        columns[point.task].add(point.observed)
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


def _configured(done: Sequence[Point], failed: Sequence[Point]) -> tuple[list[str], list[str]]:
    """The config settings that make a variant's labels, and the others that differ with them."""
    # A run that failed before its config was known says nothing about settings.
    told = [*done, *(point for point in failed if point.configured)]
    cells = _cells(told)
    differ: set[str] = set().union(*(settings.differing(cell) for cell in cells))
    typed = set().union(*(point.typed for point in told))
    chosen = settings.telling(cells, differ, typed)
    return chosen, sorted(differ.difference(chosen), key=natural)


def _observed(done: Sequence[Point], configured: Sequence[str], mixed: set[str]) -> list[str]:
    """What runs reported, where the config does not explain how they differ."""
    cells = [[point.observed for point in cell] for cell in _cells(done)]
    within = {
        name for place, name in enumerate(settings.OBSERVED) if any(len({o[place] for o in c}) > 1 for c in cells)
    }
    if not within and not mixed:
        return []
    points = {
        (number, _values(point, configured), *point.observed)
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


def _values(point: Point, names: Iterable[str]) -> tuple[Any, ...]:
    return tuple(map(point.value, names))


def _variant_rows(
    done: Sequence[Point],
    failed: Sequence[Point],
    configured: Sequence[str],
    observed: Sequence[str],
    model_shown: bool,
) -> Iterator[Row]:
    rows: dict[tuple[Any, ...], Row] = {}

    def row(point: Point, names: Sequence[str], values: tuple[Any, ...]) -> Row:
        key = (point.model, *values)
        if key not in rows:
            told_apart = tuple(zip(names, values, strict=True))
            rows[key] = Row(point.variant, point.model, model_shown, told_apart)
        return rows[key]

    names = [*configured, *observed]
    for point in done:
        row(point, names, _values(point, names)).points.setdefault(point.task, []).append(point)
    with_runs = list(rows.values())
    for point in failed:
        # A failed run has no protocol to report: it belongs to every row that it may have joined.
        names = list(configured) if point.configured else []
        values = _values(point, names)
        known = dict(zip(names, values, strict=True))
        homes = [
            home for home in with_runs if home.model == point.model and known.items() <= dict(home.told_apart).items()
        ]
        for home in homes or [row(point, names, values)]:
            home.failed_points.setdefault(point.task, []).append(point)
    yield from rows.values()
