"""Records → the rows of a table.

A row is one variant on one model under one setting; a cell is a row on one task and holds
runs that differ in their seed alone. Where the runs of a cell differ in more, the variant
gets several rows, each labelled with what tells it apart (`lora rank=4`, `lora rank=8`):
never a mean over different things.

A setting that is the same within every cell, but not from task to task, does not split a
row: settings tuned per task are common, and notes.py names them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.records import settings
from analysis.records.grouping import Point
from analysis.records.runs import RunSet, Run, ordered
from analysis.text.sorting import natural


@dataclass
class Row:
    """One row: by task its done runs and its failed ones, by seed, and the points that they are."""

    variant: str
    model: str
    model_shown: bool  # False where the whole table has one model
    distinguishing: tuple[tuple[str, Any], ...]  # setting, value
    points: dict[str, list[Point]] = field(default_factory=dict)
    failed_points: dict[str, list[Point]] = field(default_factory=dict)
    runs: dict[str, list[Run]] = field(default_factory=dict)
    failed: dict[str, list[Run]] = field(default_factory=dict)
    unsaid: frozenset[str] = frozenset()  # settings that the label leaves out: they have the commonest value

    @property
    def settings(self) -> str:
        """All that tells the row from others of its variant: `rank=4 optim.lr=0.001`."""
        return self._text(frozenset())

    @property
    def label(self) -> str:
        """The row's name in a table: the variant, then its settings, but for those with the commonest value."""
        return f"{self.variant} {self._text(self.unsaid)}".rstrip()

    @property
    def names(self) -> set[str]:
        """What the row may be called: its label, or the variant and all of its settings."""
        return {self.label, f"{self.variant} {self.settings}".rstrip()}

    def _text(self, unsaid: frozenset[str]) -> str:
        model = [f"model={settings.text(self.model)}"] if self.model_shown else []
        told = (settings.label(name, value) for name, value in self.distinguishing if name not in unsaid)
        return " ".join([*model, *told])

    def sort_key(self) -> tuple[object, ...]:
        """By variant, then model, then value by value; names and numbers as a person sorts them."""
        values = tuple(settings.sort_key(value) for _, value in self.distinguishing)
        return (natural(self.variant), natural(self.model), len(values), values)


@dataclass(frozen=True)
class Rows:
    """The rows in their order, and what a reader must know about how they were made."""

    rows: list[Row]
    tasks: list[str]
    # For each variant with several rows: settings that go along with those in its labels.
    along: dict[str, list[str]]
    # For each variant, the settings that its labels leave out where they have this, the commonest value.
    commonest: dict[str, dict[str, Any]] = field(default_factory=dict)


def build(found: RunSet) -> Rows:
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
    commonest: dict[str, dict[str, Any]] = {}
    for variant, (own, own_failed) in by_variant.items():
        configured, hidden = _configured(own, own_failed)
        protocol = _varied_protocol(own, configured, mixed)
        new = list(_variant_rows(own, own_failed, configured, protocol, several_models))
        rows.extend(new)
        if common := _commonest(new, configured):
            commonest[variant] = common
            for row in new:
                row.unsaid = frozenset(n for n, value in row.distinguishing if n in common and common[n] == value)
        if hidden:
            along[variant] = hidden
    for row in rows:
        row.runs = {task: ordered(points) for task, points in row.points.items()}
        row.failed = {task: ordered(points) for task, points in row.failed_points.items()}
    rows.sort(key=Row.sort_key)
    tasks = sorted({point.task for point in (*done, *failed)}, key=natural)
    return Rows(rows, tasks, along, commonest)


def _commonest(rows: Sequence[Row], configured: Sequence[str]) -> dict[str, Any]:
    """Of several settings of a variant's rows, those of which one value is commoner than any other, with that value.

    Of a single setting every row says what it has.
    """
    found: dict[str, Any] = {}
    for name in configured if len(configured) > 1 else ():
        counts = Counter(value for row in rows for own, value in row.distinguishing if own == name).most_common(2)
        if len(counts) > 1 and counts[0][1] > counts[1][1]:
            found[name] = counts[0][0]
    return found


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
        columns[point.task].add(point.protocol)
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


def _varied_protocol(done: Sequence[Point], configured: Sequence[str], mixed: set[str]) -> list[str]:
    """What runs reported, where the config does not explain how they differ."""
    cells = [[point.protocol for point in cell] for cell in _cells(done)]
    within = {
        name for place, name in enumerate(settings.PROTOCOL) if any(len({o[place] for o in c}) > 1 for c in cells)
    }
    if not within and not mixed:
        return []
    points = {
        (number, _values(point, configured), *point.protocol)
        for number, cell in enumerate(_cells(done))
        for point in cell
    }
    names: list[str] = []
    known = [1]
    for place, name in enumerate(settings.PROTOCOL, start=2):
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
    protocol: Sequence[str],
    model_shown: bool,
) -> Iterator[Row]:
    rows: dict[tuple[Any, ...], Row] = {}

    def row(point: Point, names: Sequence[str], values: tuple[Any, ...]) -> Row:
        key = (point.model, *values)
        if key not in rows:
            distinguishing = tuple(zip(names, values, strict=True))
            rows[key] = Row(point.variant, point.model, model_shown, distinguishing)
        return rows[key]

    names = [*configured, *protocol]
    for point in done:
        row(point, names, _values(point, names)).points.setdefault(point.task, []).append(point)
    with_runs = list(rows.values())
    for point in failed:
        # A failed run has no protocol to report: it belongs to every row that it may have joined.
        names = list(configured) if point.configured else []
        values = _values(point, names)
        known = dict(zip(names, values, strict=True))
        homes = [
            home for home in with_runs if home.model == point.model and known.items() <= dict(home.distinguishing).items()
        ]
        for home in homes or [row(point, names, values)]:
            home.failed_points.setdefault(point.task, []).append(point)
    yield from rows.values()
