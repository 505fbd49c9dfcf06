"""Many records as rows in a table's order, without holding them: they wait in a temporary file.

What is held is an entry of an index for each run and, once, what runs have in common: the names of
their fields and their settings.
"""

from __future__ import annotations

import itertools
import marshal
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from analysis import runs, settings
from analysis.order import natural
from analysis.reading import Reader, Rows, Values

_IN_MEMORY = 4 * 2**20  # bytes of rows; a larger study goes to the disk


class _Entry(NamedTuple):
    """One run: which it is, and where its row is."""

    path: str
    run_id: str
    done: bool
    finished: str
    cell: tuple[str, str, str]  # variant, model, task
    seed: int
    names: int
    base: int
    offset: int
    length: int


class Spool:
    """The rows of all records below some folders, each run once."""

    def __init__(self, roots: Iterable[Path | str]) -> None:
        """Reads every record. Never raises for what it finds there: `listed` says what is left out."""
        self.listed = runs.Listed()
        self.names: list[tuple[str, ...]] = []  # of the rows' values; the last value has none, it is None
        self.kinds: list[list[set[type]]] = []  # for each of `names`, the types that its values have
        self.bases: list[dict[str, Any]] = []  # settings, without `config.`
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY, prefix="loratory-")  # noqa: SIM115 - closed in __exit__
        self._entries = self._ordered(self._chosen(self._read(roots)))

    def __len__(self) -> int:
        return len(self._entries)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[tuple[int, int, Values]]:
        """Each row as (place in `names`, place in `bases`, values): by variant, model, task, settings and seed."""
        for entry in self._entries:
            yield entry.names, entry.base, self._values(entry)

    def _values(self, entry: _Entry) -> Values:
        self._file.seek(entry.offset)
        values: Values = marshal.loads(self._file.read(entry.length))
        return values

    def _read(self, roots: Iterable[Path | str]) -> dict[str, list[_Entry]]:
        """Fills the file; the entries by run_id."""
        filing = _Filing(self)
        by_id: dict[str, list[_Entry]] = {}
        for rows in Reader().rows(runs.folders(roots, self.listed), self.listed.distrust):
            contents = [marshal.dumps((*values, None), 2) for values in rows.values]
            self._file.writelines(contents)
            for entry in filing.entries(rows, map(len, contents)):
                by_id.setdefault(entry.run_id, []).append(entry)
        return by_id

    def _chosen(self, by_id: dict[str, list[_Entry]]) -> Iterator[_Entry]:
        for run_id, same in sorted(by_id.items()):
            used, others = runs.choose(same)
            yield used
            if others:
                differs = any(self._whole(other) != self._whole(used) for other in others)
                paths = tuple(Path(other.path) for other in others)
                self.listed.duplicates.append(runs.Duplicate(run_id, Path(used.path), paths, differs))

    def _whole(self, entry: _Entry) -> tuple[dict[str, Any], dict[str, Any]]:
        return dict(zip(self.names[entry.names], self._values(entry), strict=False)), self.bases[entry.base]

    def _ordered(self, entries: Iterable[_Entry]) -> list[_Entry]:
        by_cell: dict[tuple[str, str, str], list[_Entry]] = defaultdict(list)
        for entry in entries:
            by_cell[entry.cell].append(entry)
        cells = sorted(by_cell, key=lambda cell: tuple(map(natural, cell)))
        return [entry for cell in cells for entry in self._by_settings(by_cell[cell])]

    def _by_settings(self, entries: Sequence[_Entry]) -> list[_Entry]:
        places = {entry.base for entry in entries}
        differ = sorted(settings.unequal(self.bases[place] for place in places))
        keys = {place: _key(self.bases[place], differ) for place in places}
        return sorted(entries, key=lambda entry: (keys[entry.base], entry.seed, entry.run_id))


def _key(base: dict[str, Any], names: Sequence[str]) -> tuple[object, ...]:
    return tuple(settings.sort_key(base.get(name)) for name in names)


class _Filing:
    """Makes the entries of an index; what they have in common is held once."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._names: dict[int, int] = {}
        self._bases: dict[int, int] = {}
        self._cells: dict[tuple[str, str, str], tuple[str, str, str]] = {}
        self._offset = 0

    def entries(self, rows: Rows, lengths: Iterable[int]) -> Iterator[_Entry]:
        """The entries of some rows, which were written one behind the other."""
        spool = self._spool
        number = self._names.get(id(rows.names))
        if number is None:
            number = self._names[id(rows.names)] = len(spool.names)
            spool.names.append(rows.names)  # and so held: no other gets its id
            spool.kinds.append([set() for _ in rows.names])
        for seen, values in zip(spool.kinds[number], rows.columns, strict=True):
            seen.update(map(type, values))
        column = dict(zip(rows.names, rows.columns, strict=True))
        finished = column.get("finished") or itertools.repeat("")
        cells = zip(column["variant"], column["model"], column["task"], strict=True)
        which = zip(column["run_id"], column["status"], finished, column["seed"], cells, strict=False)
        for folder, base, length, (run_id, status, ended, seed, cell) in zip(
            rows.folders, rows.bases, lengths, which, strict=False
        ):
            place = self._bases.get(id(base))
            if place is None:
                place = self._bases[id(base)] = len(spool.bases)
                spool.bases.append(base)
            cell = self._cells.setdefault(cell, cell)
            done = status == "done"
            yield _Entry(folder, run_id, done, ended or "", cell, seed, number, place, self._offset, length)
            self._offset += length
