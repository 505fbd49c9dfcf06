"""Reads the records below folders, once each, and groups the runs into points."""

from __future__ import annotations

import contextlib
import gc
import marshal
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

from analysis.records import discovery, grouping, other_metric
from analysis.records.discovery import Run, Skipped
from analysis.records.grouping import Point, Settings, is_seed
from analysis.records.provenance import Provenance
from trainer import record as records
from trainer.machine import garbage
from trainer.record import CorruptRecord


class RunSet(Skipped):
    """The runs below some folders, and what was skipped there. Each run_id occurs once, in one point."""

    def __init__(self, roots: Iterable[Path | str]) -> None:
        """Reads every record. Bad records are skipped, never raised."""
        super().__init__()
        self.metric: str | None = None  # the metric asked for, if it is not each task's own
        self.lacking: list[Run] = []  # done runs without that metric, which are left out
        with _without_collector():
            self.runs = _once(_read(roots, self), self)
            self.points = grouping.points(self.runs)

    def report(self, metric: str) -> None:
        """Replaces the tasks' own metric by another one. Raises `AnalysisError` if no record has it."""
        self.metric = metric
        self.runs, self.lacking = other_metric.chosen(self.runs, metric)
        self.points = grouping.points(self.runs)

    def count(self, status: str) -> int:
        """The number of runs with this status."""
        return sum(len(point.runs) for point in self.having(status))

    def having(self, status: str) -> list[Point]:
        """The points whose runs have this status: done, failed, or pruned (stopped by a search, without a metric)."""
        return [point for point in self.points if point.status == status]

    def provenance(self, *statuses: str) -> Provenance:
        """The provenance of runs with these statuses; by default of done runs, or of failed ones if none is done."""
        statuses = statuses or (("done",) if self.count("done") else ("failed",))
        return Provenance.of(run.record for run in self.runs if run.record.status in statuses)

    @cached_property
    def done(self) -> list[Run]:
        """All done runs, sorted by run_id."""
        return self._by_id("done")

    @cached_property
    def failed(self) -> list[Run]:
        """All failed runs, sorted by run_id."""
        return self._by_id("failed")

    @cached_property
    def pruned(self) -> list[Run]:
        """All runs that a search pruned, by run_id."""
        return self._by_id("pruned")

    def _by_id(self, status: str) -> list[Run]:
        return [run for run in self.runs if run.record.status == status]


def read(roots: Iterable[Path | str]) -> RunSet:
    """The runs below `roots`. Bad records are skipped, never raised."""
    return RunSet(roots)


def ordered(points: Iterable[Point]) -> list[Run]:
    """The runs of some points, sorted by seed, then run_id."""
    return sorted((run for point in points for run in point.runs), key=grouping.by_seed)


def _read(roots: Iterable[Path | str], skipped: Skipped) -> Iterator[Run]:
    share = _Share()
    for folder in discovery.folders(roots, skipped):
        try:
            record = records.read(folder, share)
        except CorruptRecord as error:
            skipped.distrust(folder, str(error))
            continue
        if record is None:
            skipped.distrust(folder, f"{os.path.join(folder, records.FILENAME)}: vanished while the folders were read")
            continue
        if (why := records.misplaced(record.run_id, folder)) is not None:
            skipped.distrust(folder, why)
            continue
        yield Run(folder, record)


def _once(runs: Iterable[Run], skipped: Skipped) -> list[Run]:
    """The runs sorted by run_id, one for each. Other runs with the same run_id are added to `skipped`."""
    by_id: dict[str, Run] = {}
    repeated: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        first = by_id.setdefault(run.record.run_id, run)
        if first is not run:
            repeated[run.record.run_id].append(run)
    for run_id in sorted(repeated):
        by_id[run_id], others = discovery.choose([by_id[run_id], *repeated[run_id]])
        if others:
            used = by_id[run_id]
            differs = any(other.record != used.record for other in others)
            left_out = tuple(other.folder for other in others)
            skipped.duplicates.append(discovery.Duplicate(run_id, used.folder, left_out, differs))
    return [by_id[run_id] for run_id in sorted(by_id)]


Groups = tuple[tuple[str, tuple[str, ...]], ...]  # see `trainer.record.Hold`


class _Share:
    """Makes equal groups of many records one object. Nobody may change them."""

    def __init__(self) -> None:
        self._settings: dict[tuple[str, ...], _Settings] = {}
        self._known: dict[tuple[str, ...], dict[bytes, dict[str, Any]]] = {}  # settings without seeds, by their names
        self._groups: dict[Groups, dict[bytes, list[dict[str, Any]]]] = {}

    def __call__(self, groups: Groups, values: Any) -> Sequence[Any]:
        """The groups of a record: one object for all equal ones; of settings, the part without seeds is."""
        (group, names), *others = groups
        if not others and group in ("config", "identity"):
            settings = self._settings.get(names)
            if settings is None:
                settings = self._settings[names] = _Settings(names, self._known)
            return (settings.of(values),)
        known = self._groups.get(groups)
        if known is None:
            known = self._groups[groups] = {}
        key = marshal.dumps(values, 2)  # bytes distinguish 1, 1.0 and True, and hash lists
        found = known.get(key)
        if found is None:
            remaining = iter(values)
            found = known[key] = [dict(zip(names, remaining, strict=False)) for _, names in groups]
        return found


class _Settings:
    """Settings with the same names, of which seeds are not shared. known: see `_Share`."""

    def __init__(self, names: tuple[str, ...], known: dict[tuple[str, ...], Any]) -> None:
        self._seeds = [(name, index) for index, name in enumerate(names) if is_seed(name)]
        others = [index for index, name in enumerate(names) if not is_seed(name)]
        self._names = tuple(names[index] for index in others)
        # An itemgetter of fewer than two indices returns no tuple.
        self._others = itemgetter(*others) if len(others) > 1 else lambda values: tuple(values[n] for n in others)
        self._known = known.setdefault(self._names, {})

    def of(self, values: Sequence[Any]) -> Settings:
        """The settings with these values, in the order of the names."""
        others = self._others(values)
        key = marshal.dumps(others, 2)
        shared = self._known.get(key)
        if shared is None:
            shared = self._known[key] = dict(zip(self._names, others, strict=True))
        return Settings(shared, {name: values[index] for name, index in self._seeds})


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Disables garbage collection, each pass of which would visit all records read so far."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        garbage.move_to_oldest()
        if was:
            gc.enable()


__all__ = ["Run", "RunSet", "Skipped", "ordered", "read"]
