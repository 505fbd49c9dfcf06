"""The rows of a spool on columns that all of them share, and their text as csv."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from typing import Any

from analysis.inert import inert
from analysis.order import natural
from analysis.points import CODE, Made
from analysis.reading import Values
from analysis.rebuild import picker
from analysis.spool import Spool
from trainer.record import FIELDS, GROUPS, Record

# Behind the plain fields; each of these is a group of names. Seeds are settings; the others are behind all of these.
_ORDER = ("metric", "metrics", "method", "data", "steps", "params", "rank", "memory", "time", "files", "config", *CODE)


class Columns:
    """The rows of a spool on columns in three parts: `own`, `code` and `shared`, which few rows have anew.

    Iterating gives each row as (values of `own`, place in `codes`, place in `bases`).
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        names = sorted({name for shape in spool.shapes for name in shape.names}, key=place)
        self.own = [name for name in names if name.partition(".")[0] not in CODE]
        self.code = [name for name in names if name.partition(".")[0] in CODE]
        self.codes = [_flat(made) for made in spool.made]
        # Settings but for seeds.
        self.bases = spool.bases
        self.shared = sorted(spool.bases.all_names(), key=natural)
        self._picks = [picker(shape.stored, self.own) for shape in spool.shapes]

    @property
    def names(self) -> list[str]:
        """All columns, in their order."""
        return [*self.own, *self.code, *(f"config.{name}" for name in self.shared)]

    def __iter__(self) -> Iterator[tuple[Values, int, int]]:
        for number, base, made, values in self._spool.rows():
            yield self._picks[number](values), made, base

    def kinds(self) -> dict[str, set[type]]:
        """The types of the values in each column."""
        found: dict[str, set[type]] = {name: set() for name in self.names}
        for shape in self._spool.shapes:
            for name, types in zip(shape.names, shape.kinds, strict=True):
                found[name] |= types
        for name in self.shared:
            found[f"config.{name}"] |= self.bases.kinds(name)
        return {name: kinds - {type(None)} for name, kinds in found.items()}

    def csv(self) -> Iterator[str]:
        """Line by line; lists are JSON, what is absent is empty."""
        lines: list[str] = []
        writer = csv.writer(Into(lines), lineterminator="\n")

        def written(values: Iterable[Any]) -> str:
            writer.writerow(map(text, values))
            return lines.pop()[:-1]

        # Of numbers csv's own text is right.
        kinds = self.kinds()
        odd = [place for place, name in enumerate(self.own) if kinds[name] & (_ODD | _TEXT)]

        yield written(self.names) + "\n"
        # Few are different: each is made once, that of a base for all of its rows that stand together.
        codes: dict[int, str] = {}
        before, end = -1, ""
        for own, code, base in self:
            if code not in codes:
                codes[code] = "," + written(map(self.codes[code].get, self.code)) if self.code else ""
            if base != before:
                settings = self.bases.items(base)
                before, end = base, "," + written(map(settings.get, self.shared)) if self.shared else ""
            values = list(own)
            for place in odd:
                values[place] = text(values[place])
            writer.writerow(values)
            yield f"{lines.pop()[:-1]}{codes[code]}{end}\n"


_ODD = {bool, list, dict}
_TEXT = {str}
_JSON = json.JSONEncoder(ensure_ascii=False).encode
_JSON_TEXT = json.encoder.encode_basestring


def text(value: Any) -> Any:
    """A value as csv has it: JSON for what is neither text nor a number; no text is a formula."""
    if type(value) is str:
        return inert(value)
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is list and _TEXT.issuperset(map(type, value)):
        return f"[{', '.join(map(_JSON_TEXT, value))}]"  # the same, and faster
    return _JSON(value) if type(value) in _ODD else value


def _flat(made: Made) -> dict[str, Any]:
    """What runs were made with, by the names of a row."""
    return {f"{group}.{name}": value for group, own in made._asdict().items() for name, value in own.items()}


class Into:
    """A file whose every write is an entry of a list; `io.StringIO` takes four bytes for a letter."""

    def __init__(self, lines: list[str]) -> None:
        self.write = lines.append


def place(name: str) -> tuple[int, int, tuple[object, ...]]:
    """Sorts the names of a flat row: plain fields first, then group by group."""
    group, dot, rest = name.partition(".")
    if not dot:
        return (0, FIELDS[Record].index(name), ())
    known = FIELDS[GROUPS[group]] if group in GROUPS else ()
    return (1 + _ORDER.index(group), known.index(rest) if rest in known else 0, natural(rest))
