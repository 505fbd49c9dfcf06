"""Run folders → runs, in points: those of a point differ in their seed alone."""

from __future__ import annotations

import contextlib
import gc
import marshal
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

from analysis.records import discovery, grouping, other_metric
from analysis.records.discovery import Skipped, Run
from analysis.records.grouping import Point, Settings, is_seed
from analysis.records.provenance import Provenance
from trainer import record as records
from trainer.record import CorruptRecord


class RunSet(Skipped):
    """All that lies below some folders. A run is in one point, and no run_id in two runs."""

    def __init__(self, roots: Iterable[Path | str]) -> None:
        """Reads every record. Never raises for what it finds there."""
        super().__init__()
        self.metric: str | None = None  # where another than the tasks' own was asked for
        self.lacking: list[Run] = []  # done runs that don't have it and are left out
        with _without_collector():
            self.runs = _once(_read(roots, self), self)
            self.points = grouping.points(self.runs)

    def report(self, metric: str) -> None:
        """Has another metric of the records in the place of the tasks' own. Raises `AnalysisError` if none has it."""
        self.metric = metric
        self.runs, self.lacking = other_metric.chosen(self.runs, metric)
        self.points = grouping.points(self.runs)

    def count(self, status: str) -> int:
        """The number of runs that ended so."""
        return sum(len(point.runs) for point in self.having(status))

    def having(self, status: str) -> list[Point]:
        """The points whose runs ended so: done, failed, or pruned: stopped by a search, no number and no failure."""
        return [point for point in self.points if point.status == status]

    def provenance(self, *statuses: str) -> Provenance:
        """Where the runs come from that ended so: of done ones the protocols, too. Of none named the done runs; where
        there are none, the failed ones."""
        statuses = statuses or (("done",) if self.count("done") else ("failed",))
        found = Provenance.of(run.record for run in self.runs if run.record.status in statuses)
        for point in self.having("done") if "done" in statuses else ():
            found.add_protocol(point.task, point.protocol, len(point.runs))
        return found

    @cached_property
    def done(self) -> list[Run]:
        """All done runs, by run_id."""
        return self._by_id("done")

    @cached_property
    def failed(self) -> list[Run]:
        """All failed runs, by run_id."""
        return self._by_id("failed")

    @cached_property
    def pruned(self) -> list[Run]:
        """All runs that a search stopped, by run_id."""
        return self._by_id("pruned")

    def _by_id(self, status: str) -> list[Run]:
        return [run for run in self.runs if run.record.status == status]


def read(roots: Iterable[Path | str]) -> RunSet:
    """Reads every record below `roots`. Never raises for what it finds there."""
    return RunSet(roots)


def ordered(points: Iterable[Point]) -> list[Run]:
    """The runs of some points, by seed, then run_id."""
    return sorted((run for point in points for run in point.runs), key=grouping.by_seed)


def _read(roots: Iterable[Path | str], listed: Skipped) -> Iterator[Run]:
    share = _Share()
    for folder in discovery.folders(roots, listed):
        try:
            record = records.read(folder, share)
        except CorruptRecord as error:
            listed.distrust(folder, str(error))
            continue
        if record is None:
            listed.distrust(folder, f"{os.path.join(folder, records.FILENAME)}: vanished while the folders were read")
            continue
        if (why := records.misplaced(record.run_id, folder)) is not None:
            listed.distrust(folder, why)
            continue
        yield Run(folder, record)


def _once(runs: Iterable[Run], listed: Skipped) -> list[Run]:
    """The runs by run_id, of those with the same one the one to count; the others go to `listed`."""
    by_id: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_id[run.record.run_id].append(run)
    chosen = []
    for run_id in sorted(by_id):
        used, others = discovery.choose(by_id[run_id])
        chosen.append(used)
        if others:
            differs = any(other.record != used.record for other in others)
            left_out = tuple(other.folder for other in others)
            listed.duplicates.append(discovery.Duplicate(run_id, used.folder, left_out, differs))
    return chosen


class _Share:
    """Lets many records have their equal parts in common. They are for reading, never to be changed."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, tuple[str, ...]], _Group] = {}
        self._known: dict[tuple[str, ...], dict[bytes, dict[str, Any]]] = {}  # what records share, by its names

    def __call__(self, group: str, names: tuple[str, ...], values: Sequence[Any]) -> Mapping[str, Any]:
        """A group of a record: one object for all that are equal, settings but for their seeds."""
        known = self._groups.get((group, names))
        if known is None:
            known = self._groups[group, names] = _Group(names, group in ("config", "identity"), self._known)
        return known.of(values)


class _Group:
    """A group with certain names in it, of any record.

    seeds: whether seeds are apart from what records share. known: see `_Share`.
    """

    def __init__(self, names: tuple[str, ...], seeds: bool, known: dict[tuple[str, ...], Any]) -> None:
        self._seeds = [(name, place) for place, name in enumerate(names) if is_seed(name)] if seeds else []
        others = [place for place, name in enumerate(names) if (name, place) not in self._seeds]
        self._names = tuple(names[place] for place in others)
        # With fewer than two places an itemgetter gives no tuple.
        self._others = itemgetter(*others) if len(others) > 1 else lambda values: tuple(values[n] for n in others)
        self._splits = seeds
        self._known = known.setdefault(self._names, {})

    def of(self, values: Sequence[Any]) -> Mapping[str, Any]:
        """The group with these values, one for each of the names."""
        others = self._others(values)
        key = marshal.dumps(others, 2)  # as bytes, 1, 1.0 and True differ, and a list can be looked up
        shared = self._known.get(key)
        if shared is None:
            shared = self._known[key] = dict(zip(self._names, others, strict=True))
        return Settings(shared, {name: values[place] for name, place in self._seeds}) if self._splits else shared


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Within it nothing is collected as garbage: every pass would go through all records that came to stay."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # and back: all of it counts as old now, so that no pass over it is due
        gc.unfreeze()
        if was:
            gc.enable()


__all__ = ["RunSet", "Skipped", "Run", "ordered", "read"]
