"""Makes the rows of a table from points.

A row is one variant on one model with one setting; a cell is a row on one task, and its runs differ only in their
seed. If the runs of a cell would differ in more, the variant gets several rows, each labelled with the distinguishing
settings (`lora rank=4`, `lora rank=8`), because a mean over different settings is meaningless.

A setting that differs only between tasks does not split a row, since many people tune settings per task.
footnotes.py names these settings.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.records import settings
from analysis.records.grouping import Point
from analysis.records.runs import Run, RunSet, ordered
from analysis.text.sorting import natural


@dataclass
class Row:
    """One row. By task: its points, and their runs sorted by seed; done and failed ones apart."""

    variant: str
    model: str
    model_shown: bool  # False if the whole table has one model
    distinguishing: tuple[tuple[str, Any], ...]  # setting, value
    points: dict[str, list[Point]] = field(default_factory=dict)
    failed_points: dict[str, list[Point]] = field(default_factory=dict)
    runs: dict[str, list[Run]] = field(default_factory=dict)
    failed: dict[str, list[Run]] = field(default_factory=dict)
    unsaid: frozenset[str] = frozenset()  # settings with the commonest value, which the label omits

    @property
    def settings(self) -> str:
        """The settings that distinguish the row from others of its variant: `rank=4 optim.lr=0.001`."""
        return self._text(frozenset())

    @property
    def label(self) -> str:
        """The row's name in a table: the variant, then its settings without those that have the commonest value."""
        return f"{self.variant} {self._text(self.unsaid)}".rstrip()

    @property
    def names(self) -> set[str]:
        """Names that a user may write for the row: its label, or the variant and all of its settings."""
        return {self.label, f"{self.variant} {self.settings}".rstrip()}

    def _text(self, unsaid: frozenset[str]) -> str:
        model = [f"model={settings.text(self.model)}"] if self.model_shown else []
        labels = (settings.label(name, value) for name, value in self.distinguishing if name not in unsaid)
        return " ".join([*model, *labels])

    def sort_key(self) -> tuple[object, ...]:
        """Sort key: variant, then model, then the values one by one, in natural order."""
        values = tuple(settings.sort_key(value) for _, value in self.distinguishing)
        return (natural(self.variant), natural(self.model), len(values), values)


@dataclass(frozen=True)
class Rows:
    """The rows in order, and what their labels don't say."""

    rows: list[Row]
    tasks: list[str]
    # By variant with several rows: settings that differ between them and are not in their labels.
    along: dict[str, list[str]]
    # By variant: the settings that labels omit if they have this value, the commonest one.
    commonest: dict[str, dict[str, Any]] = field(default_factory=dict)


def build(runs: RunSet) -> Rows:
    """The rows of all runs, done and failed, sorted by `Row.sort_key`."""
    done, failed = runs.having("done"), runs.having("failed")
    several_models = len({point.model for point in (*done, *failed)}) > 1
    rows: list[Row] = []
    along: dict[str, list[str]] = {}
    mixed = _mixed_columns(done)
    by_variant: dict[str, tuple[list[Point], list[Point]]] = defaultdict(lambda: ([], []))
    for number, points in enumerate((done, failed)):
        for point in points:
            by_variant[point.variant][number].append(point)
    commonest: dict[str, dict[str, Any]] = {}
    for variant, (variant_done, variant_failed) in by_variant.items():
        configured, hidden = _configured(variant_done, variant_failed)
        protocol = _varied_protocol(variant_done, configured, mixed)
        new = list(_variant_rows(variant_done, variant_failed, configured, protocol, several_models))
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
    """By setting its commonest value among a variant's rows, if one value is commoner than all others.

    It is empty for a single setting, which every label shows.
    """
    commonest: dict[str, Any] = {}
    for name in configured if len(configured) > 1 else ():
        counts = Counter(value for row in rows for setting, value in row.distinguishing if setting == name).most_common(
            2
        )
        if len(counts) > 1 and counts[0][1] > counts[1][1]:
            commonest[name] = counts[0][0]
    return commonest


def _cells(points: Iterable[Point]) -> list[list[Point]]:
    cells: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for point in points:
        cells[point.model, point.task].append(point)
    return list(cells.values())


def _mixed_columns(done: Iterable[Point]) -> set[str]:
    """The settings of `settings.COMPARABLE` in which runs of one task differ, so that they can't be compared.

    Of settings that differ together (the metric and its direction) the first is enough.
    """
    columns: dict[str, set[tuple[Any, ...]]] = defaultdict(set)
    for point in done:
        columns[point.task].add(point.protocol)
    mixed: set[str] = set()
    for values in columns.values():
        indices: list[int] = []
        for index, name in enumerate(settings.COMPARABLE):
            if _groups(values, [*indices, index]) > _groups(values, indices):
                indices.append(index)
                mixed.add(name)
    return mixed


def _groups(points: Iterable[tuple[Any, ...]], indices: Sequence[int]) -> int:
    """The number of distinct points, compared at these indices only."""
    return len({tuple(point[index] for index in indices) for point in points})


def _configured(done: Sequence[Point], failed: Sequence[Point]) -> tuple[list[str], list[str]]:
    """The config settings in a variant's labels, and the others that differ."""
    # A run that failed before its config was known has no settings.
    known = [*done, *(point for point in failed if point.configured)]
    cells = _cells(known)
    differ: set[str] = set().union(*(settings.differing(cell) for cell in cells))
    typed = set().union(*(point.typed for point in known))
    chosen = settings.telling(cells, differ, typed)
    return chosen, sorted(differ.difference(chosen), key=natural)


def _varied_protocol(done: Sequence[Point], configured: Sequence[str], mixed: set[str]) -> list[str]:
    """The settings of `settings.PROTOCOL` in which runs differ and the config does not explain it."""
    cells = [[point.protocol for point in cell] for cell in _cells(done)]
    within = {
        name for index, name in enumerate(settings.PROTOCOL) if any(len({p[index] for p in c}) > 1 for c in cells)
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
    for index, name in enumerate(settings.PROTOCOL, start=2):
        splits_cells = name in within and _groups(points, [0, *known, index]) > _groups(points, [0, *known])
        # If rows of a column differ in it, the label shows it, unless a setting in the label implies it.
        unexplained = _groups(points, [index]) == 1 or (_groups(points, [*known, index]) > _groups(points, known))
        if splits_cells or (name in mixed and unexplained):
            names.append(name)
            known.append(index)
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
        # A failed run reports no protocol and belongs to every row that agrees with its config.
        names = list(configured) if point.configured else []
        values = _values(point, names)
        known = dict(zip(names, values, strict=True))
        possible = [r for r in with_runs if r.model == point.model and known.items() <= dict(r.distinguishing).items()]
        for each in possible or [row(point, names, values)]:
            each.failed_points.setdefault(point.task, []).append(point)
    yield from rows.values()
