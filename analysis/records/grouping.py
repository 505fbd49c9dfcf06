"""Rows of records → points: runs that nothing but their seed tells apart, so that what is said of one holds for all."""

from __future__ import annotations

import marshal
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from analysis.records import settings
from analysis.records.reader import Rows, Values
from analysis.records.settings_store import Bases, Config, is_seed

CODE = ("git", "versions", "hardware")


@dataclass(slots=True)
class Point:
    """What such runs have in common, and their numbers. Of the seeds, `config` has those that are not the run's."""

    variant: str
    model: str
    task: str
    status: str
    observed: Values  # of settings.OBSERVED, in its order
    config: Config
    configured: bool  # False where a run failed before its config was known
    typed: frozenset[str]  # settings that were typed on the command line of some run
    runs: array[int]

    def value(self, name: str) -> Any:
        """The value of a setting in a form that can be hashed; None where there is none."""
        if name.startswith(settings.CONFIG):
            return settings.hashable(self.config.get(name.removeprefix(settings.CONFIG)))
        return self.observed[_OBSERVED[name]]


class Made(NamedTuple):
    """What runs were made with."""

    git: dict[str, Any]
    versions: dict[str, Any]
    hardware: dict[str, Any]


class Group(NamedTuple):
    """All of a row that few rows have anew."""

    shape: int
    cell: tuple[str, str, str]  # variant, model, task
    status: str
    observed: Values
    base: int
    seeds: tuple[tuple[str, Any], ...]
    typed: frozenset[str]
    made: int


_OBSERVED = {name: place for place, name in enumerate(settings.OBSERVED)}
_CELL = ("variant", "model", "task")
_OWN = object()  # in place of a seed that is the run's own


class Groups:
    """Sorts rows into groups."""

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self.made: list[Made] = []
        self._first: list[str] = []  # the first run_id of each group
        self._numbers: dict[Group, int] = {}
        self._made: dict[tuple[tuple[str, ...], bytes], int] = {}
        self._typed: dict[tuple[str, ...], frozenset[str]] = {}
        self._common: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def numbers(self, shape: int, rows: Rows) -> Iterator[int]:
        """For each row the number of its group."""
        column = dict(zip(rows.names, rows.columns, strict=True))
        blank = (None,) * len(rows.folders)

        def columns(names: Iterable[str]) -> Iterator[Values]:
            found = [column.get(name, blank) for name in names]
            return zip(*found, strict=True) if found else iter([()] * len(blank))

        code = tuple(name for name in rows.names if name.partition(".")[0] in CODE)
        seeded = [name for name in rows.names if name.startswith("config.") and is_seed(name)]
        short = [name.removeprefix("config.") for name in seeded]
        all_own = tuple((name, _OWN) for name in short)
        common = self._common.setdefault
        for cell, observed, entries, made, base, (run_id, seed, status, overrides) in zip(
            *(columns(_CELL), columns(settings.OBSERVED), columns(seeded), columns(code), rows.bases),
            columns(("run_id", "seed", "status", "overrides")),
            strict=True,
        ):
            seeds = all_own
            if entries != (seed,) * len(entries):
                seeds = tuple(
                    (name, _OWN if entry == seed else settings.hashable(entry))
                    for name, entry in zip(short, entries, strict=True)
                )
            cell, observed, seeds = common(cell, cell), common(observed, observed), common(seeds, seeds)
            typed = self._typed_in(overrides or ())
            group = Group(shape, cell, status, observed, base, seeds, typed, self._made_with(code, made))
            number = self._numbers.get(group)
            if number is None:
                number = self._numbers[group] = len(self.groups)
                self.groups.append(group)
                self._first.append(run_id)
            elif run_id < self._first[number]:
                self._first[number] = run_id
            yield number

    def _typed_in(self, overrides: Sequence[str]) -> frozenset[str]:
        names = tuple([override.partition("=")[0] for override in overrides])
        found = self._typed.get(names)
        if found is None:
            found = self._typed[names] = frozenset(settings.CONFIG + name.lstrip("+") for name in names)
        return found

    def _made_with(self, names: tuple[str, ...], values: Values) -> int:
        # As bytes, 1, 1.0 and True differ, and a list can be looked up.
        key = (names, marshal.dumps(values, 2))
        number = self._made.get(key)
        if number is None:
            number = self._made[key] = len(self.made)
            groups: dict[str, dict[str, Any]] = {group: {} for group in CODE}
            for name, value in zip(names, values, strict=True):
                group, _, rest = name.partition(".")
                groups[group][rest] = value
            self.made.append(Made(**groups))
        return number

    def points(self, bases: Bases, members: Sequence[array[int]], seeds: Sequence[int]) -> list[Point]:
        """The points, by their first run_id. members: of each group the runs that count; seeds: of each run."""
        self._numbers.clear()  # no more rows come
        own = self._own(members)
        points: dict[tuple[Any, ...], Point] = {}
        shared: dict[tuple[Any, ...], dict[str, Any]] = {}
        for number in sorted(range(len(self.groups)), key=self._first.__getitem__):
            group = self.groups[number]
            # A seed that is not the run's is a setting like any other.
            others = {name: entry for name, entry in group.seeds if name not in own[group.cell[0]]}
            for known, runs in _by_seed(others, members[number], seeds):
                entries = tuple(known.items())
                key = (group.cell, group.status, group.observed, group.base, entries)
                point = points.get(key)
                if point is None:
                    configured = bool(group.seeds or bases.names(group.base))
                    config = Config(bases, group.base, shared.setdefault(entries, known))
                    points[key] = Point(
                        *group.cell, group.status, group.observed, config, configured, group.typed, runs
                    )
                else:
                    point.typed |= group.typed
                    point.runs = point.runs + runs
        return list(points.values())

    def _own(self, members: Sequence[array[int]]) -> dict[str, set[str]]:
        """By variant, the settings that repeat the run's seed under another name (`config.data.seed: ${seed}`)."""
        entries: dict[str, set[tuple[str, Any]]] = {group.cell[0]: set() for group in self.groups}
        for group, runs in zip(self.groups, members, strict=True):
            if runs and group.status != "pruned":
                entries[group.cell[0]].update(group.seeds)
        return {
            variant: {"seed", *({name for name, _ in found} - {name for name, value in found if value is not _OWN})}
            for variant, found in entries.items()
        }


def _by_seed(
    others: dict[str, Any], runs: array[int], seeds: Sequence[int]
) -> Iterator[tuple[dict[str, Any], array[int]]]:
    """Runs of a group by their settings that look like seeds."""
    if not runs:
        return
    if _OWN not in others.values():
        yield others, runs
        return
    by_seed: dict[int, array[int]] = {}
    for number in runs:
        by_seed.setdefault(seeds[number], array("i")).append(number)
    for seed, own in by_seed.items():
        yield {name: seed if entry is _OWN else entry for name, entry in others.items()}, own
