"""Many records as rows, without holding them: they wait in a temporary file.

What is held grows with the runs by some dozen bytes each: where a run's row is, its seed and its group. All else is
held once for many runs: the names of their fields, their settings (bases.py), and what they are (points.py).
"""

from __future__ import annotations

import contextlib
import itertools
import marshal
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from analysis import brief, listing, settings
from analysis.bases import Bases
from analysis.listing import Listed, Run
from analysis.order import natural
from analysis.points import Groups, Point
from analysis.provenance import Provenance
from analysis.reading import Reader, Rows, Values
from analysis.rebuild import Rebuild, picker
from trainer import record as records

_IN_MEMORY = 2**18  # bytes of rows; a larger study goes to the disk
_PARTS = 4
_FOLDER = "folder"  # no name of a record


class Shape:
    """Rows with the same names; `stored` are those of the values in the file, which a None is behind."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.kinds: list[set[type]] = [set() for _ in names]  # for each name, the types of its values
        self.stored = (*names, _FOLDER)
        self.run_id = names.index("run_id")
        self.brief = picker(self.stored, brief.NAMES)
        self.record = Rebuild(self.stored)


class Spool:
    """The rows of all records below some folders, each run once."""

    def __init__(self, roots: Iterable[Path | str], listed: Listed) -> None:
        """Reads every record. Never raises for what it finds there: `listed` is told what is left out.

        Raises `OSError` where there is no room for the rows.
        """
        self.shapes: list[Shape] = []
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY, prefix="loratory-")  # noqa: SIM115 - see close
        # By run, in the order in which they were read: where its row begins, its seed, its group.
        self._starts = array("q", [0])
        self._seeds: list[int] = []
        self._group = array("i")
        self.bases = Bases()
        groups = Groups()
        try:
            read = Reader(self.bases).rows(listing.folders(roots, listed), listed.distrust)
            keys = self._fill((rows for found in read if (rows := _in_place(found, listed))), groups)
        except OSError:
            with contextlib.suppress(OSError):  # of what could not be written
                self.close()
            raise
        # Of each group only what it takes to read a row.
        self.made = groups.made
        self._kinds = array("i", [number for each in groups.groups for number in (each.shape, each.base, each.made)])
        left_out = self._left_out(keys, listed)
        members = [array("i") for _ in groups.groups]
        for number, group in enumerate(self._group):
            if not left_out[number]:
                members[group].append(number)
        self.points = groups.points(self.bases, members, self._seeds)  # of all runs that count
        self._origins = Counter[tuple[str, int]]()  # (status, place in `made`) → runs
        for each, runs in zip(groups.groups, members, strict=True):
            self._origins[each.status, each.made] += len(runs)

    def close(self) -> None:
        """Gives up the rows."""
        self._file.close()

    def __len__(self) -> int:
        return sum(len(point.runs) for point in self.points)

    def provenance(self, *statuses: str) -> Provenance:
        """Where the runs come from that ended so; of done ones the protocols, too."""
        found = Provenance()
        for (status, made), times in self._origins.items():
            if times and status in statuses:
                found.add(*self.made[made], times=times)
        for point in self.points if "done" in statuses else ():
            if point.status == "done":
                found.add_protocol(point.task, point.observed, len(point.runs))
        return found

    def run(self, number: int) -> Run:
        """A run, read anew."""
        (shape, base, made), values = self._kind(number), self._values(number)
        return Run(values[-2], self.shapes[shape].record(values, self.bases, base, self.made[made]))

    def brief(self, number: int) -> Values:
        """The values of `brief.NAMES` of a run, read anew."""
        return self.shapes[self._kind(number)[0]].brief(self._values(number))

    def rows(self) -> Iterator[tuple[int, int, int, Values]]:
        """Each row by variant, model, task, settings and seed: places in `shapes`, `bases` and `made`, and values."""
        cells: dict[tuple[str, str, str], list[Point]] = {}
        for point in self.points:
            cells.setdefault((point.variant, point.model, point.task), []).append(point)
        for cell in sorted(cells, key=lambda cell: tuple(map(natural, cell))):
            for number in self._by_settings(cells[cell]):
                shape, base, made = self._kind(number)
                yield shape, base, made, self._values(number)

    def ordered(self, numbers: Iterable[int]) -> array[int]:
        """Runs by seed, then run_id."""
        found = array("i")
        for _, same in itertools.groupby(sorted(numbers, key=self._seeds.__getitem__), self._seeds.__getitem__):
            own = list(same)
            found.extend(own if len(own) == 1 else sorted(own, key=self._run_id))
        return found

    def _by_settings(self, points: Iterable[Point]) -> Iterator[int]:
        points = list(points)
        differ = sorted(self.bases.unequal({point.config.place for point in points}))
        alike: dict[tuple[object, ...], array[int]] = {}
        for point in points:
            key = tuple(settings.sort_key(self.bases.get(point.config.place, name)) for name in differ)
            alike.setdefault(key, array("i")).extend(point.runs)
        for numbers in map(alike.__getitem__, sorted(alike)):
            yield from self.ordered(numbers)

    def _run_id(self, number: int) -> str:
        run_id: str = self._values(number)[self.shapes[self._kind(number)[0]].run_id]
        return run_id

    def _kind(self, number: int) -> Sequence[int]:
        """The places of a run's shape, of its base, and of what it was made with."""
        start = 3 * self._group[number]
        return self._kinds[start : start + 3]

    def _values(self, number: int) -> Values:
        start = self._starts[number]
        self._file.seek(start)
        values: Values = marshal.loads(self._file.read(self._starts[number + 1] - start))
        return values

    def _fill(self, everything: Iterable[Rows], groups: Groups) -> array[int]:
        """Fills the file; for each run a number that runs of one run_id share."""
        keys = array("q")
        places: dict[int, int] = {}
        for rows in everything:
            place = places.get(id(rows.names))
            if place is None:
                place = places[id(rows.names)] = len(self.shapes)
                self.shapes.append(Shape(rows.names))  # and so held: no other names get their id
            shape = self.shapes[place]
            for seen, types in zip(shape.kinds, rows.kinds, strict=True):
                seen |= types
            contents = [
                marshal.dumps((*values, folder, None), 2)
                for values, folder in zip(rows.values, rows.folders, strict=True)
            ]
            self._file.writelines(contents)
            ends = itertools.accumulate(map(len, contents), initial=self._starts[-1])
            self._starts.extend(itertools.islice(ends, 1, None))
            self._seeds += rows.columns[rows.names.index("seed")]
            self._group.extend(groups.numbers(place, rows))
            keys.extend(map(hash, rows.columns[rows.names.index("run_id")]))
        self._file.flush()  # a full disk is found out here
        return keys

    def _left_out(self, keys: array[int], listed: Listed) -> bytearray:
        """By run, whether another with its run_id counts."""
        left_out = bytearray(len(keys))
        duplicates = []
        for run_id, numbers in self._same(keys):
            by_path = {run.path: (number, run) for number in numbers for run in [self.run(number)]}
            used, others = listing.choose([run for _, run in by_path.values()])
            for number in numbers:
                left_out[number] = number != by_path[used.path][0]
            if others:
                differs = any(other.record != used.record for other in others)
                paths = tuple(other.folder for other in others)
                duplicates.append(listing.Duplicate(run_id, used.folder, paths, differs))
        listed.duplicates += sorted(duplicates, key=lambda duplicate: duplicate.run_id)
        return left_out

    def _same(self, keys: array[int]) -> Iterator[tuple[str, list[int]]]:
        """The run_ids that several runs have."""
        # A part at a time: a dictionary of all would be larger than all that is held.
        for part in range(_PARTS):
            first: dict[int, int] = {}
            several: dict[int, list[int]] = {}
            for number, key in enumerate(keys):
                if key % _PARTS == part and first.setdefault(key, number) != number:
                    several.setdefault(key, [first[key]]).append(number)
            for numbers in several.values():
                by_id: dict[Any, list[int]] = {}
                for number in numbers:
                    by_id.setdefault(self._run_id(number), []).append(number)
                yield from ((run_id, own) for run_id, own in by_id.items() if len(own) > 1)


def _in_place(rows: Rows, listed: Listed) -> Rows | None:
    """Those that lie in the folders of their runs; None for none."""
    ids = rows.columns[rows.names.index("run_id")]
    wrong = {n: why for n, own in enumerate(zip(ids, rows.folders, strict=True)) if (why := records.misplaced(*own))}
    for number, why in wrong.items():
        listed.distrust(rows.folders[number], why)
    return rows.only([n for n in range(len(ids)) if n not in wrong]) if wrong else rows


__all__ = ["Shape", "Spool"]
