"""Many records, read fast and held small.

What makes it fast, and lets nothing pass that `record.read` refuses:

- Runs that differ in their seed alone have the same settings, which are half of a record. `write`
  puts a name on each line, so that the text of these settings is known again and parsed once.
- Rows with the same names, a study has some dozens of such *shapes*, are checked column by column.
  Where a column holds something that no record has, its rows are checked one by one.

Records share their equal parts. One from here is for reading, never to be changed.
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from trainer import record as records
from trainer.record import FIELDS, GROUPS, OPEN_GROUPS, CorruptRecord, Record

Values = tuple[Any, ...]

_MOST = 10_000  # shapes, and bases, that are kept


class Config(Mapping[str, Any]):
    """A record's settings in two parts: `base`, which runs that differ in their seed share, and `seeds`."""

    __slots__ = ("base", "seeds")

    def __init__(self, base: dict[str, Any], seeds: dict[str, Any]) -> None:
        self.base = base
        self.seeds = seeds

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Config:
        """`settings` in their two parts."""
        if isinstance(settings, Config):
            return settings
        base = {name: value for name, value in settings.items() if not is_seed(name)}
        return cls(base, {name: value for name, value in settings.items() if is_seed(name)})

    def __getitem__(self, name: str) -> Any:
        return self.base[name] if name in self.base else self.seeds[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.base[name] if name in self.base else self.seeds.get(name, default)

    def __iter__(self) -> Iterator[str]:
        yield from self.base
        yield from self.seeds

    def __len__(self) -> int:
        return len(self.base) + len(self.seeds)

    def __repr__(self) -> str:
        return repr(dict(self))


def is_seed(name: str) -> bool:
    """Whether a setting's name is that of a seed: `seed`, `data.seed`, `data.split_seed`."""
    return "seed" in name.rpartition(".")[2]


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
    bases: list[dict[str, Any]]  # as in Config: without `config.`; few objects, equal ones mostly are one


Refuse = Callable[[str, str], object]  # is given a folder, and why its record can't be trusted


class Reader:
    """Reads the records of many folders, some at a time and in no certain order."""

    _AT_ONCE = 1000

    def __init__(self) -> None:
        self._shapes: dict[tuple[str, ...], _Shape] = {}
        self._texts: dict[str, str] = {}
        self._bases = _Bases(self._texts)

    def records(self, folders: Iterable[str], refuse: Refuse) -> Iterator[tuple[str, Record]]:
        """The folders with their records, as `record.read` gives them."""
        for shape, rows in self._read(folders, refuse):
            yield from zip(rows.folders, shape.records(rows, self._texts), strict=True)

    def rows(self, folders: Iterable[str], refuse: Refuse) -> Iterator[Rows]:
        """The folders with the rows of their records."""
        for _, rows in self._read(folders, refuse):
            yield rows

    def _read(self, folders: Iterable[str], refuse: Refuse) -> Iterator[tuple[_Shape, Rows]]:
        waiting = iter(folders)
        while some := list(itertools.islice(waiting, self._AT_ONCE)):
            for names, (places, values, bases) in self._groups(some, refuse).items():
                shape = self._shapes.get(names)
                if shape is None:
                    if len(self._shapes) >= _MOST:
                        self._shapes.clear()
                    shape = self._shapes[names] = _Shape(names)
                rows = Rows(shape.names, places, values, list(zip(*values, strict=True)), bases)
                if not shape.admits(rows):
                    rows = _one_by_one(rows, refuse)
                if rows.folders:
                    yield shape, rows

    def _groups(self, folders: Iterable[str], refuse: Refuse) -> dict[tuple[str, ...], _Group]:
        """By the names of rows: their folders, values and bases."""
        groups: dict[tuple[str, ...], _Group] = {}
        for folder in folders:
            try:
                found = records.load(folder, self._bases.split)
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


_Group = tuple[list[str], list[Values], list[dict[str, Any]]]


def _one_by_one(rows: Rows, refuse: Refuse) -> Rows:
    """Those of some rows that are records."""
    good = []
    for number, own in enumerate(rows.values):
        try:
            records.check(dict(zip(rows.names, own, strict=True)))
        except CorruptRecord as error:
            refuse(rows.folders[number], f"{os.path.join(rows.folders[number], records.FILENAME)}: {error}")
        else:
            good.append(number)
    values = [rows.values[number] for number in good]
    return Rows(
        rows.names,
        [rows.folders[number] for number in good],
        values,
        list(zip(*values, strict=True)),
        [rows.bases[number] for number in good],
    )


class _Bases:
    """Takes rows apart into the settings that runs have in common, and all else."""

    def __init__(self, texts: dict[str, str]) -> None:
        """texts: those that records have in common."""
        self._texts = texts
        self._by_text: dict[str, dict[str, Any]] = {}
        self._by_value: dict[bytes, dict[str, Any]] = {}

    def split(self, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The row in a text without its base, and the base. Raises `ValueError` or `RecursionError`."""
        found = self._split_as_written(text)
        if found is not None:
            return found
        row = records.parse(text)
        base = {name: row.pop(name) for name in list(row) if _is_base(name)}
        # As bytes, 1, 1.0 and True differ, and a list can be looked up.
        key = marshal.dumps((*base, *base.values()), 2)
        if key not in self._by_value:
            self._by_value[key] = self._made(base)
        return row, self._by_value[key]

    def _split_as_written(self, text: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
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
            base = self._by_text.get(shared)
            if base is None:
                row = records.parse(f"{{{shared.removesuffix(',')}}}")
                if not all(map(_is_base, row)):
                    return None
                base = self._by_text[shared] = self._made(row)
            own = f"{{{seeds}{rest}"
            row, end = _DECODE(own)
            return (row, base) if own[end:] == "\n" else None
        except (ValueError, RecursionError):
            return None  # the whole text fails too, and tells where

    def _made(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The base whose part of a row this is."""
        if len(self._by_text) + len(self._by_value) >= _MOST:
            self._by_text.clear()
            self._by_value.clear()
        common = self._texts.setdefault
        return {
            sys.intern(name.removeprefix("config.")): common(value, value) if type(value) is str else value
            for name, value in row.items()
        }


_LINE = '\n "'
_DECODE = json.JSONDecoder().raw_decode  # json.loads for a text that begins with a brace


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


@functools.lru_cache(_MOST)
def _is_base(name: str) -> bool:
    return name.startswith("config.") and len(name) > len("config.") and not is_seed(name)


class _Shape:
    """What rows with these names, those of their base left out, have in common."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self._place = {name: number for number, name in enumerate(names)}
        self._types = {number: types for name, number in self._place.items() if (types := records.types_of(name))}
        self._measured = any(name.startswith(("metric.", "metrics.")) for name in names)
        self._well_named = False
        self._inside: dict[str, list[str]] = {group: [] for group in OPEN_GROUPS}
        for name in names:
            group, _, rest = name.partition(".")
            if group in self._inside:
                self._inside[group].append(sys.intern(rest))
        self._groups: dict[type, dict[Values, Any]] = {}
        self._known: dict[str, dict[bytes, dict[str, Any]]] = {}

    def admits(self, rows: Rows) -> bool:
        """Whether all rows are records; where not, some of them may be."""
        if not self._well_named:
            try:
                records.check(dict(zip(self.names, rows.values[0], strict=True)))
            except CorruptRecord:
                return False
            self._well_named = True
        for number, allowed in self._types.items():
            types = set(map(type, rows.columns[number]))
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

    def records(self, rows: Rows, texts: dict[str, str]) -> Iterator[Record]:
        """The records of rows that were admitted; `texts` holds those that records have in common."""
        parts: dict[str, Any] = {name: self._column(rows, name) for name in FIELDS[Record]}
        for name in _LABELS:
            parts[name] = map(texts.setdefault, parts[name], parts[name])
        parts["overrides"] = [[texts.setdefault(text, text) for text in own or ()] for own in parts["overrides"]]
        for group, cls in GROUPS.items():
            columns: list[Iterable[Any]] = [self._column(rows, f"{group}.{name}") for name in FIELDS[cls]]
            if group == "metric":  # its name, split and checkpoint
                columns = [[texts.setdefault(v, v) if type(v) is str else v for v in column] for column in columns]
            parts[group] = self._equal(cls, columns) if group in _SHARED else map(cls, *columns)
        for group in OPEN_GROUPS:
            parts[group] = self._dictionaries(rows, group)
        parts["config"] = map(Config, rows.bases, parts["config"])
        return map(Record, *(parts[name] for name in FIELDS[Record]))

    def _column(self, rows: Rows, name: str) -> Values:
        place = self._place.get(name)
        return (None,) * len(rows.folders) if place is None else rows.columns[place]

    def _equal(self, cls: type, columns: Sequence[Iterable[Any]]) -> list[Any]:
        """One object for rows in which all of these are equal; they have equal types, `admits` has seen to it."""
        known = self._groups.setdefault(cls, {})
        return [known.get(values) or known.setdefault(values, cls(*values)) for values in zip(*columns, strict=True)]

    def _dictionaries(self, rows: Rows, group: str) -> list[dict[str, Any]]:
        names = self._inside[group]
        if not names:
            return [{}] * len(rows.folders)
        inside = zip(*(self._column(rows, f"{group}.{name}") for name in names), strict=True)
        if group in ("metrics", "method"):  # measured anew in every run
            return [dict(zip(names, values, strict=True)) for values in inside]
        known = self._known.setdefault(group, {})
        found = []
        for values in inside:
            # As bytes, 1, 1.0 and True differ, and a list can be looked up.
            key = marshal.dumps(values, 2)
            if key not in known:
                known[key] = dict(zip(names, values, strict=True))
            found.append(known[key])
        return found


_LABELS = ("study", "variant", "task", "model", "status")
_SHARED = ("data", "steps", "params", "rank")  # measured anew in every run: the other groups
