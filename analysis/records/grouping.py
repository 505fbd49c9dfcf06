"""Runs → points: runs that differ in their seed alone, so that what is said of one holds for all."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.records import settings
from analysis.records.discovery import Run
from trainer.record import Record


@dataclass(slots=True)
class Point:
    """What such runs have in common, and the runs.

    identity: the settings that name them, without their seed; `config`: all of their settings, as the first run has
    them. configured: False where a run failed before its config was known. typed: settings that were typed on the
    command line of some run.
    """

    variant: str
    model: str
    task: str
    status: str
    protocol: tuple[Any, ...]  # of settings.PROTOCOL, in its order
    identity: dict[str, Any]
    config: Mapping[str, Any]
    configured: bool
    typed: frozenset[str]
    runs: list[Run] = field(default_factory=list)

    def value(self, name: str) -> Any:
        """The value of a setting in a form that can be hashed; None where there is none."""
        if name.startswith(settings.CONFIG):
            name = name.removeprefix(settings.CONFIG)
            return settings.hashable(self.config.get(name, self.identity.get(name)))
        return self.protocol[_PROTOCOL[name]]


_PROTOCOL = {name: place for place, name in enumerate(settings.PROTOCOL)}


class Settings(Mapping[str, Any]):
    """The settings of a run in two parts: its seeds, and all others, one object for all runs that have the same."""

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

    def items(self) -> Any:  # the view of every Mapping looks each name up
        return itertools.chain(self.shared.items(), self.seeds.items())

    def __repr__(self) -> str:
        return repr(dict(self))


@functools.cache
def is_seed(name: str) -> bool:
    """Whether a setting's name is that of a seed: `seed`, `data.seed`, `data.split_seed`."""
    return "seed" in name.rpartition(".")[2]


def points(runs: Sequence[Run]) -> list[Point]:
    """The points of some runs, whose config and identity are `Settings`, by their first run_id; in a point by seed."""
    own = _own_seeds(run.record for run in runs)
    found: dict[tuple[Any, ...], Point] = {}
    texts: dict[int, str] = {}  # of settings, by the object that runs have in common
    for run in sorted(runs, key=lambda run: run.record.run_id):
        record = run.record
        naming = _settings(record.identity or record.config)  # where a record doesn't say, all settings name the run
        seeds = {name: value for name, value in naming.seeds.items() if name not in own.get(record.variant, ())}
        if id(naming.shared) not in texts:
            texts[id(naming.shared)] = json.dumps(naming.shared, sort_keys=True)
        cell, protocol = (record.variant, record.model, record.task, record.status), settings.protocol_of(record)
        key = (cell, protocol, texts[id(naming.shared)], repr(sorted(seeds.items())) if seeds else "")
        point = found.get(key)
        if point is None:
            identity = {**naming.shared, **seeds}
            point = found[key] = Point(*cell, protocol, identity, record.config, bool(record.config), frozenset())
        point.typed |= _typed(tuple(record.overrides))
        point.runs.append(run)
    for point in found.values():
        point.runs.sort(key=by_seed)
    return list(found.values())


@functools.lru_cache(10_000)
def _typed(overrides: tuple[str, ...]) -> frozenset[str]:
    return frozenset(settings.CONFIG + override.partition("=")[0].lstrip("+") for override in overrides)


def _settings(found: Mapping[str, Any]) -> Settings:
    assert isinstance(found, Settings)
    return found


def by_seed(run: Run) -> tuple[int, str]:
    """Sorts runs by seed, then run_id."""
    return run.record.seed, run.record.run_id


def _own_seeds(records: Iterable[Record]) -> dict[str, set[str]]:
    """By variant, the settings that repeat the run's seed under another name (`config.data.seed: ${seed}`)."""
    own: dict[str, set[str]] = {}
    other: dict[str, set[str]] = {}
    for record in records:
        for name, value in _settings(record.config).seeds.items() if record.status != "pruned" else ():
            same = type(value) is int and value == record.seed
            (own if same else other).setdefault(record.variant, set()).add(name)
    return {variant: {"seed", *names - other.get(variant, set())} for variant, names in own.items()}
