"""Run folders → runs, in points: those of a point differ in their seed alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import overload

from analysis.records.discovery import Listed, Run
from analysis.records.grouping import Point
from analysis.records.provenance import Provenance
from analysis.records.reader import Values, steady
from analysis.records.rebuild import Share
from analysis.records.spool import Spool
from analysis.tables import needed_fields as brief


class Found(Listed):
    """All that lies below some folders. A run is in one point, and no run_id in two runs."""

    def __init__(self, roots: Iterable[Path | str]) -> None:
        """Reads every record, and holds none. Never raises for what it finds there."""
        super().__init__()
        self._spool = Spool(roots, self)
        self._held: dict[int, Run] | None = None
        self.points = self._spool.points

    def close(self) -> None:
        """Gives up what was not held."""
        self._spool.close()

    def hold(self) -> None:
        """Reads all runs once more, and holds them."""
        share = Share()
        held: dict[int, Run] = {}
        for number in (number for point in self.points for number in point.runs):
            run = held[number] = self._spool.run(number)
            share(run.record)
        self._held = held

    def run(self, number: int) -> Run:
        """One run."""
        return self._spool.run(number) if self._held is None else self._held[number]

    def brief(self, number: int) -> Values:
        """Of one run the values of `brief.NAMES`."""
        return self._spool.brief(number) if self._held is None else brief.of(self._held[number].record)

    def numbers(self, points: Iterable[Point]) -> Sequence[int]:
        """The runs of some points, by seed, then run_id."""
        numbers = (number for point in points for number in point.runs)
        held = self._held
        if held is None:
            return self._spool.ordered(numbers)
        return sorted(numbers, key=lambda number: (held[number].record.seed, held[number].record.run_id))

    def count(self, status: str) -> int:
        """The number of runs that ended so."""
        return sum(len(point.runs) for point in self.having(status))

    def having(self, status: str) -> list[Point]:
        """The points whose runs ended so: done, failed, or pruned: stopped by a search, no number and no failure."""
        return [point for point in self.points if point.status == status]

    def provenance(self) -> Provenance:
        """Where the done runs come from; where there are none, the failed ones."""
        return self._spool.provenance("done" if self.count("done") else "failed")

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
        return sorted(Runs(self, self.having(status)), key=lambda run: run.record.run_id)


class Runs(Sequence[Run]):
    """The runs of some points, by seed, then run_id: read anew each time where they are not held."""

    __slots__ = ("_found", "_points")

    def __init__(self, found: Found, points: Sequence[Point]) -> None:
        self._found = found
        self._points = points

    def __len__(self) -> int:
        return sum(len(point.runs) for point in self._points)

    @overload
    def __getitem__(self, place: int) -> Run: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Run]: ...
    def __getitem__(self, place: int | slice) -> Run | Sequence[Run]:
        numbers = self._found.numbers(self._points)[place]
        return self._found.run(numbers) if isinstance(numbers, int) else list(map(self._found.run, numbers))

    def __iter__(self) -> Iterator[Run]:
        return map(self._found.run, self._found.numbers(self._points))

    def brief(self) -> Iterator[Values]:
        """Of each run the values of `brief.NAMES`."""
        return map(self._found.brief, self._found.numbers(self._points))


def read(roots: Iterable[Path | str]) -> Found:
    """Reads every record below `roots`, and holds it. Never raises for what it finds there."""
    with steady(), stored(roots) as found:
        found.hold()
    return found


@contextlib.contextmanager
def stored(roots: Iterable[Path | str]) -> Iterator[Found]:
    """The same in little memory, however many runs there are; they can be read within it alone."""
    found = Found(roots)
    try:
        yield found
    finally:
        found.close()


__all__ = ["Found", "Listed", "Run", "Runs", "read", "stored"]
