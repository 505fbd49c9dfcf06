"""Run folders → runs, in points: those of a point differ in their seed alone."""

from __future__ import annotations

import contextlib
import gc
import marshal
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from analysis.records import discovery, grouping
from analysis.records.discovery import Listed, Run
from analysis.records.grouping import Point, Settings, is_seed
from analysis.records.provenance import Provenance
from trainer import record as records
from trainer.record import CorruptRecord, Record


class Found(Listed):
    """All that lies below some folders. A run is in one point, and no run_id in two runs."""

    def __init__(self, roots: Iterable[Path | str]) -> None:
        """Reads every record. Never raises for what it finds there."""
        super().__init__()
        with _without_collector():
            self.runs = _once(_read(roots, self), self)
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
            found.add_protocol(point.task, point.observed, len(point.runs))
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


def read(roots: Iterable[Path | str]) -> Found:
    """Reads every record below `roots`. Never raises for what it finds there."""
    return Found(roots)


def ordered(points: Iterable[Point]) -> list[Run]:
    """The runs of some points, by seed, then run_id."""
    return sorted((run for point in points for run in point.runs), key=grouping.by_seed)


def _read(roots: Iterable[Path | str], listed: Listed) -> Iterator[Run]:
    share = _Share()
    for folder in discovery.folders(roots, listed):
        try:
            record = records.read(folder)
        except CorruptRecord as error:
            listed.distrust(folder, str(error))
            continue
        if record is None:
            listed.distrust(folder, f"{os.path.join(folder, records.FILENAME)}: vanished while the folders were read")
            continue
        if (why := records.misplaced(record.run_id, folder)) is not None:
            listed.distrust(folder, why)
            continue
        share(record)
        yield Run(folder, record)


def _once(runs: Iterable[Run], listed: Listed) -> list[Run]:
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
        self._texts: dict[str, str] = {}
        self._groups: dict[bytes, dict[str, Any]] = {}

    def __call__(self, record: Record) -> None:
        """Replaces what another record has too."""
        for name in ("study", "variant", "task", "model", "status"):
            setattr(record, name, self._text(getattr(record, name)))
        record.overrides = [self._text(text) for text in record.overrides]
        for name in ("git", "code", "versions", "hardware"):
            setattr(record, name, self._group(getattr(record, name)))
        record.config = self._settings(record.config)  # type: ignore[assignment]
        record.identity = self._settings(record.identity)  # type: ignore[assignment]

    def _settings(self, settings: dict[str, Any]) -> Settings:
        seeds = {name: settings.pop(name) for name in [name for name in settings if is_seed(name)]}
        return Settings(self._group(settings), seeds)

    def _text(self, text: str) -> str:
        return self._texts.setdefault(text, text)

    def _group(self, group: dict[str, Any]) -> dict[str, Any]:
        # As bytes, 1, 1.0 and True differ, and a list can be looked up.
        return self._groups.setdefault(marshal.dumps(group, 2), group)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Within it nothing is collected as garbage: every pass would go through all records that came to stay."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


__all__ = ["Found", "Listed", "Run", "ordered", "read"]
