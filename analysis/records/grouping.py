"""Groups runs into points: the runs of a point differ only in their seed."""

from __future__ import annotations

import functools
import itertools
import marshal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.records import settings
from analysis.records.discovery import Run
from trainer.record import Record


@dataclass(slots=True)
class Point:
    """Runs that differ only in their seed, and what they have in common.

    protocol: values of `settings.PROTOCOL`, in its order. identity: the settings that the run names hash, without the
    seed. config: all settings, those of the first run. configured: False if a run failed before its config was known.
    typed: settings that were overridden on the command line of some run.
    """

    variant: str
    model: str
    task: str
    status: str
    protocol: tuple[Any, ...]
    identity: dict[str, Any]
    config: Mapping[str, Any]
    configured: bool
    typed: set[str]
    runs: list[Run] = field(default_factory=list)

    def value(self, name: str) -> Any:
        """The value of a setting, hashable; None if it is absent."""
        if name.startswith(settings.CONFIG):
            name = name.removeprefix(settings.CONFIG)
            return settings.hashable(self.config.get(name, self.identity.get(name)))
        return self.protocol[_PROTOCOL[name]]


_PROTOCOL = {name: index for index, name in enumerate(settings.PROTOCOL)}


class Settings(Mapping[str, Any]):
    """The settings of a run. shared: all but the seeds, one object for all runs in which they are equal."""

    __slots__ = ("seeds", "shared")

    def __init__(self, shared: dict[str, Any], seeds: dict[str, Any]) -> None:
        self.shared = shared
        self.seeds = seeds

    def __getitem__(self, name: str) -> Any:
        return self.seeds[name] if name in self.seeds else self.shared[name]

    def __iter__(self) -> Iterator[str]:
        return itertools.chain(self.shared, self.seeds)

    def __len__(self) -> int:
        return len(self.shared) + len(self.seeds)

    def items(self) -> Any:  # Mapping.items would look up each name
        return itertools.chain(self.shared.items(), self.seeds.items())

    def __repr__(self) -> str:
        return repr(dict(self))


ORIGIN = "variant.ranks_from.run_id"  # name of a run; `ranks_from.seed` and `.setting` say the rest of it


@functools.cache
def is_seed(name: str) -> bool:
    """Whether a setting is a seed (`seed`, `data.seed`, `data.split_seed`) or names a run that has one."""
    return "seed" in name.rpartition(".")[2] or name == ORIGIN


def points(runs: Sequence[Run]) -> list[Point]:
    """The points of `runs`, sorted by their smallest run_id; the runs of a point are sorted by seed.

    runs: their config and identity are `Settings`.
    """
    seed_names = _seed_names(run.record for run in runs)
    points: dict[tuple[Any, ...], Point] = {}
    contents: dict[int, bytes] = {}  # of shared settings, by the id of the object
    for run in sorted(runs, key=lambda run: run.record.run_id):
        record = run.record
        naming = _settings(record.identity or record.config)  # records before version 2 hash all settings
        seeds = {name: value for name, value in naming.seeds.items() if name not in seed_names.get(record.variant, ())}
        if id(naming.shared) not in contents:  # marshal distinguishes 1, 1.0 and True, and hashes lists
            contents[id(naming.shared)] = marshal.dumps(sorted(naming.shared.items()), 2)
        cell, protocol = (record.variant, record.model, record.task, record.status), settings.protocol_of(record)
        key = (cell, protocol, contents[id(naming.shared)], repr(sorted(seeds.items())) if seeds else "")
        point = points.get(key)
        if point is None:
            identity = {**naming.shared, **seeds}
            point = points[key] = Point(*cell, protocol, identity, record.config, bool(record.config), set())
        point.typed.update(map(_typed, record.overrides))
        point.runs.append(run)
    for point in points.values():
        point.runs.sort(key=by_seed)
    return list(points.values())


@functools.lru_cache(10_000)
def _typed(override: str) -> str:
    return settings.CONFIG + override.partition("=")[0].lstrip("+")


def _settings(settings: Mapping[str, Any]) -> Settings:
    assert isinstance(settings, Settings)
    return settings


def by_seed(run: Run) -> tuple[int, str]:
    """Sort key of a run: its seed, then its run_id."""
    return run.record.seed, run.record.run_id


def _seed_names(records: Iterable[Record]) -> dict[str, set[str]]:
    """By variant, `seed` and the settings that always follow from it (`config.data.seed: ${seed}`)."""
    equal: dict[str, set[str]] = {}
    other: dict[str, set[str]] = {}
    for record in records:
        for name, value in _settings(record.config).seeds.items() if record.status != "pruned" else ():
            same = name == ORIGIN or (type(value) is int and value == record.seed)
            (equal if same else other).setdefault(record.variant, set()).add(name)
    return {variant: {"seed", *names - other.get(variant, set())} for variant, names in equal.items()}
