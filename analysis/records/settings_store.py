"""The settings of many runs, each kind once and in little room.

A *base* is all settings of a run but for its seeds: runs that differ in their seed alone share it (or
have equal ones, where their records are not written alike). Bases with the
same names are rows of one table. A column is one number where all its rows have one value, else a number a row; the
numbers are places in one list of values.
"""

from __future__ import annotations

import marshal
import sys
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import compress
from operator import ne
from typing import Any


def is_seed(name: str) -> bool:
    """Whether a setting's name is that of a seed: `seed`, `data.seed`, `data.split_seed`."""
    return "seed" in name.rpartition(".")[2]


class Bases:
    """Settings by place, a number; names are without `config.`, values never to be changed."""

    def __init__(self) -> None:
        self._values: list[Any] = []
        self._numbers: dict[str | bytes, int] = {}
        self._tables: dict[tuple[str, ...], _Table] = {}
        self._in = array("i")  # by place: which table, and which row of it
        self._row = array("i")
        self._all: list[_Table] = []

    def __len__(self) -> int:
        return len(self._in)

    def add(self, settings: Mapping[str, Any]) -> int:
        """The place of these settings, a new one."""
        names = tuple(settings)
        table = self._tables.get(names)
        if table is None:
            table = self._tables[names] = _Table(tuple(map(sys.intern, names)), len(self._all))
            self._all.append(table)
        self._in.append(table.number)
        self._row.append(table.count)
        table.add(list(map(self._number, settings.values())))
        return len(self._in) - 1

    def _number(self, value: Any) -> int:
        # As bytes, 1, 1.0 and True differ, and a list can be looked up.
        key = value if type(value) is str else marshal.dumps(value, 2)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._values)
            self._values.append(value)
        return number

    def names(self, place: int) -> tuple[str, ...]:
        """The names of all settings there."""
        return self._all[self._in[place]].names

    def value(self, place: int, name: str) -> Any:
        """The value of a setting. Raises `KeyError` where there is none."""
        table = self._all[self._in[place]]
        return self._values[table.at(table.place[name], self._row[place])]

    def get(self, place: int, name: str) -> Any:
        """As `value`, None where there is none."""
        try:
            return self.value(place, name)
        except KeyError:
            return None

    def items(self, place: int) -> dict[str, Any]:
        """All settings there."""
        table, row = self._all[self._in[place]], self._row[place]
        return {name: self._values[table.at(number, row)] for number, name in enumerate(table.names)}

    def all_names(self) -> set[str]:
        """The names of all settings that there are."""
        return {name for names in self._tables for name in names}

    def kinds(self, name: str) -> set[type]:
        """The types of all values of a setting."""
        numbers = {number for table in self._all for number in table.numbers(name, range(table.count))}
        return {type(None) if number is None else type(self._values[number]) for number in numbers}

    def unequal(self, places: Iterable[int]) -> set[str]:
        """The names under which some of these have something else than others; None is what one lacks."""
        rows: dict[int, list[int]] = {}
        for place in places:
            rows.setdefault(self._in[place], []).append(self._row[place])
        tables = [(self._all[number], own) for number, own in rows.items()]
        if len(tables) == 1:
            names: Collection[str] = tables[0][0].varying
        else:
            names = {name for table, _ in tables for name in table.names}
        return {name for name in names if self._several(name, tables)}

    def _several(self, name: str, tables: Iterable[tuple[_Table, Collection[int]]]) -> bool:
        numbers: set[int | None] = set()
        for table, rows in tables:
            numbers |= table.numbers(name, rows)
        if len(numbers) < 2:
            return False
        first, *others = (None if number is None else self._values[number] for number in numbers)
        return any(first != other for other in others)


_VARYING = -1


class _Table:
    """Bases with the same names, as numbers of values."""

    def __init__(self, names: tuple[str, ...], number: int) -> None:
        self.names = names
        self.number = number
        self.place = {name: place for place, name in enumerate(names)}
        self.varying: dict[str, array[int]] = {}
        self.count = 0
        self._same: list[int] = []  # by column; _VARYING where there is another
        self._columns: dict[int, array[int]] = {}

    def add(self, row: Sequence[int]) -> None:
        if not self.count:
            self._same = list(row)
        for place in compress(range(len(row)), map(ne, self._same, row)):
            column = self._columns.get(place)
            if column is None:
                column = self._columns[place] = array("i", [self._same[place]]) * self.count
                self.varying[self.names[place]] = column
                self._same[place] = _VARYING
            column.append(row[place])
        self.count += 1

    def at(self, place: int, row: int) -> int:
        number = self._same[place]
        return self._columns[place][row] if number == _VARYING else number

    def numbers(self, name: str, rows: Iterable[int]) -> set[int | None]:
        if name not in self.place:
            return {None}
        column = self._columns.get(self.place[name])
        return {self._same[self.place[name]]} if column is None else {column[row] for row in rows}


class Config(Mapping[str, Any]):
    """A run's settings in two parts: a base, and its seeds."""

    __slots__ = ("bases", "place", "seeds")

    def __init__(self, bases: Bases, place: int, seeds: Mapping[str, Any]) -> None:
        self.bases = bases
        self.place = place
        self.seeds = seeds

    def __getitem__(self, name: str) -> Any:
        try:
            return self.bases.value(self.place, name)
        except KeyError:
            return self.seeds[name]

    def __iter__(self) -> Iterator[str]:
        yield from self.bases.names(self.place)
        yield from self.seeds

    def __len__(self) -> int:
        return len(self.bases.names(self.place)) + len(self.seeds)

    def __repr__(self) -> str:
        return repr(dict(self))
