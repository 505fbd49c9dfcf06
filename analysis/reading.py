"""Many records, read fast and held small.

What makes it fast, and lets nothing pass that `record.read` refuses:

- Runs that differ in their seed alone have the same settings, which are half of a record. `write`
  puts a name on each line, so that the text of these settings is known again and parsed once.
- Rows with the same names, a study has some dozens of such *shapes*, are checked column by column.
  Where a column holds something that no record has, its rows are checked one by one.

What stays of the records that were read is their settings, see bases.py.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import json
import marshal
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from analysis.bases import Bases, is_seed
from trainer import record as records
from trainer.record import CorruptRecord

Values = tuple[Any, ...]


@contextlib.contextmanager
def steady() -> Iterator[None]:
    """Within it nothing is collected as garbage.

    Where a hundred thousand objects come into being and stay, every pass would go through all of them.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class Rows(NamedTuple):
    """Flat rows that are records and have the same names."""

    names: tuple[str, ...]  # but for the bases'; one object for all rows that have these
    folders: list[str]
    values: list[Values]  # for each folder those of `names`
    columns: list[Values]  # the same, for each name
    kinds: list[set[type]]  # for each name, the types of its values
    bases: list[int]  # for each folder, the place of its settings

    @classmethod
    def of(cls, names: tuple[str, ...], folders: list[str], values: list[Values], bases: list[int]) -> Rows:
        """One or more rows."""
        columns = list(zip(*values, strict=True))
        return cls(names, folders, values, columns, [set(map(type, column)) for column in columns], bases)

    def only(self, good: list[int]) -> Rows | None:
        """Those in these places; None for none."""
        if not good:
            return None
        folders, values, bases = ([of[number] for number in good] for of in (self.folders, self.values, self.bases))
        return Rows.of(self.names, folders, values, bases)  # type: ignore[arg-type]


Refuse = Callable[[str, str], object]  # is given a folder, and why its record can't be trusted


class Reader:
    """Reads the records of many folders, some at a time and in no certain order."""

    _AT_ONCE = 1000

    def __init__(self, bases: Bases) -> None:
        """bases: where the settings go."""
        self._shapes: dict[tuple[str, ...], _Shape] = {}
        self._apart = _Apart(bases)

    def rows(self, folders: Iterable[str], refuse: Refuse) -> Iterator[Rows]:
        """The folders with the rows of their records: those that `record.read` would take."""
        waiting = iter(folders)
        while some := list(itertools.islice(waiting, self._AT_ONCE)):
            for names, (places, values, bases) in self._groups(some, refuse).items():
                shape = self._shapes.get(names)
                if shape is None:
                    shape = self._shapes[names] = _Shape(names)
                rows = Rows.of(shape.names, places, values, bases)
                if shape.admits(rows):
                    yield rows
                elif good := _one_by_one(rows, refuse):
                    yield good

    def _groups(self, folders: Iterable[str], refuse: Refuse) -> dict[tuple[str, ...], _Group]:
        """By the names of rows: their folders, values and bases."""
        groups: dict[tuple[str, ...], _Group] = {}
        for folder in folders:
            try:
                found = records.load(folder, self._apart.split)
            except CorruptRecord as error:
                refuse(folder, str(error))
                continue
            if found is None:
                refuse(folder, f"{os.path.join(folder, records.FILENAME)}: vanished while the folders were read")
                continue
            row, base = found
            names = tuple(row)
            group = groups.get(names)
            if group is None:
                group = groups[names] = ([], [], [])
            group[0].append(folder)
            group[1].append(tuple(row.values()))
            group[2].append(base)
        return groups


_Group = tuple[list[str], list[Values], list[int]]


def _one_by_one(rows: Rows, refuse: Refuse) -> Rows | None:
    """Those of some rows that are records; None where none is."""
    good = []
    for number, own in enumerate(rows.values):
        try:
            records.check(dict(zip(rows.names, own, strict=True)))
        except CorruptRecord as error:
            refuse(rows.folders[number], f"{os.path.join(rows.folders[number], records.FILENAME)}: {error}")
        else:
            good.append(number)
    return rows.only(good)


class _Apart:
    """Takes rows apart into the settings that runs have in common, and all else."""

    def __init__(self, bases: Bases) -> None:
        self._bases = bases
        self._known: dict[int, int] = {}  # by the mark of a text, or of what it says

    def split(self, text: str) -> tuple[dict[str, Any], int]:
        """The row in a text without its base, and the base's place. Raises `ValueError` or `RecursionError`."""
        found = self._split_as_written(text)
        if found is not None:
            return found
        row = records.parse(text)
        base = {name: row.pop(name) for name in list(row) if _is_base(name)}
        # As bytes, 1, 1.0 and True differ, and a list can be looked up.
        mark = _mark(marshal.dumps((*base, *base.values()), 2))
        if mark not in self._known:
            self._known[mark] = self._added(base)
        return row, self._known[mark]

    def _split_as_written(self, text: str) -> tuple[dict[str, Any], int] | None:
        """The same for a text as `record.write` makes it, None for any other.

        There the settings come first, each on lines of its own, and a line break, a space and a
        quote are before every name and nowhere else: JSON has no line break within a text.
        """
        end = text.find('\n "data.')
        if end < 0:
            end = text.find('\n "error"')  # of a failed run
        settings, rest = text[1:end], text[end:]
        # Without a brace inside, no name belongs to a deeper object; without a setting behind, none comes twice.
        if not text.startswith('{\n "config.') or end < 0 or "{" in settings or '"config.' in rest:
            return None
        shared, seeds = _apart(settings)
        try:
            mark = _mark(shared)
            base = self._known.get(mark)
            if base is None:
                row = records.parse(f"{{{shared.removesuffix(',')}}}")
                if not all(map(_is_base, row)):
                    return None
                base = self._known[mark] = self._added(row)
            own = f"{{{seeds}{rest}"
            row, end = _DECODE(own)
            return (row, base) if own[end:] == "\n" else None
        except (ValueError, RecursionError):
            return None  # the whole text fails too, and tells where

    def _added(self, row: Mapping[str, Any]) -> int:
        return self._bases.add({name.removeprefix("config."): value for name, value in row.items()})


def _mark(text: str | bytes) -> int:
    """128 bits of a text, by a keyed hash: no two of a billion texts are likely to have the same."""
    return hash(text) << 64 ^ hash(text[1:])


_LINE = '\n "'
_DECODE = json.JSONDecoder(object_pairs_hook=records.unique).raw_decode  # json.loads of what begins with a brace


def _apart(settings: str) -> tuple[str, str]:
    """Lines with settings: those of a base, and those of seeds."""
    seeds = ""
    place = settings.find("seed")
    while place >= 0:
        start, end = settings.rfind(_LINE, 0, place), settings.find(_LINE, place)
        line = settings[start : end if end >= 0 else None]
        if is_seed(line[len(_LINE) :].partition('"')[0]):
            seeds += line
            settings = settings[:start] + settings[start + len(line) :]
            place = settings.find("seed", start)
        else:
            place = settings.find("seed", start + len(line))
    return settings, seeds


@functools.lru_cache(1000)
def _is_base(name: str) -> bool:
    return name.startswith("config.") and len(name) > len("config.") and not is_seed(name)


class _Shape:
    """What rows with these names, those of their base left out, have in common."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = tuple(map(sys.intern, names))
        self._place = {name: number for number, name in enumerate(names)}
        self._types = {number: types for name, number in self._place.items() if (types := records.types_of(name))}
        self._measured = any(name.startswith(("metric.", "metrics.")) for name in names)
        self._well_named = False

    def admits(self, rows: Rows) -> bool:
        """Whether all rows are records; where not, some of them may be."""
        if not self._well_named:
            try:
                records.check(dict(zip(self.names, rows.values[0], strict=True)))
            except CorruptRecord:
                return False
            self._well_named = True
        for number, allowed in self._types.items():
            types = rows.kinds[number]
            # A sum may overflow though every number is finite: then the rows are checked one by one.
            if not types <= allowed or (float in types and not math.isfinite(sum(filter(None, rows.columns[number])))):
                return False
        texts = itertools.chain.from_iterable(filter(None, self._column(rows, "overrides")))
        return (
            set(self._column(rows, "version")) == {records.VERSION}
            and set(self._column(rows, "status")) == ({"done"} if self._measured else {"failed"})
            and (not self._measured or None not in self._column(rows, "metric.value"))
            and set(map(type, texts)) <= {str}
        )

    def _column(self, rows: Rows, name: str) -> Values:
        place = self._place.get(name)
        return (None,) * len(rows.folders) if place is None else rows.columns[place]
