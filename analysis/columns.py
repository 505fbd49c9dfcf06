"""The rows of a spool on columns that all of them share, and their text as csv."""

from __future__ import annotations

import csv
import json
import marshal
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from analysis import runs, settings
from analysis.order import natural
from analysis.provenance import Provenance
from analysis.reading import Values
from analysis.spool import Spool
from trainer.record import FIELDS, GROUPS, Record

_CODE = ("git", "versions", "hardware")
# Behind the plain fields; each of these is a group of names. Seeds are settings; the others are behind all of these.
_ORDER = ("metric", "metrics", "method", "data", "steps", "params", "rank", "memory", "time", "config", *_CODE)


class Columns:
    """The rows of a spool on columns in three parts: `own`, `code`, which few rows have anew, and `shared`.

    Iterating gives each row as (values of `own`, values of `code`, place in `bases`).
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self.listed: runs.Listed = spool.listed
        names = sorted({name for names in spool.names for name in names}, key=place)
        self.own = [name for name in names if name.partition(".")[0] not in _CODE]
        self.code = [name for name in names if name.partition(".")[0] in _CODE]
        # Settings but for seeds.
        self.bases = spool.bases
        self.shared = sorted({name for base in spool.bases for name in base}, key=natural)
        self._picks = [[_picker(own, part) for part in (self.own, self.code, _FLAGS)] for own in spool.names]
        self._seen: Counter[tuple[bytes, Values]] = Counter()

    @property
    def names(self) -> list[str]:
        """All columns, in their order."""
        return [*self.own, *self.code, *(f"config.{name}" for name in self.shared)]

    def __iter__(self) -> Iterator[tuple[Values, Values, int]]:
        self._seen.clear()
        for number, base, values in self._spool:
            own, code, flags = (pick(values) for pick in self._picks[number])
            self._seen[marshal.dumps(code, 2), flags] += 1
            yield own, code, base

    def kinds(self) -> dict[str, set[type]]:
        """The types of the values in each column."""
        found: dict[str, set[type]] = {name: set() for name in self.names}
        for names, seen in zip(self._spool.names, self._spool.kinds, strict=True):
            for name, types in zip(names, seen, strict=True):
                found[name] |= types
        for base in self.bases:
            for name, value in base.items():
                found[f"config.{name}"].add(type(value))
        return {name: kinds - {type(None)} for name, kinds in found.items()}

    def provenance(self) -> Provenance:
        """Where the rows come from that were given the last time."""
        found = Provenance()
        for (code, (status, task, *observed)), times in self._seen.items():
            groups: dict[str, dict[str, Any]] = {group: {} for group in _CODE}
            for name, value in zip(self.code, marshal.loads(code), strict=True):
                group, _, rest = name.partition(".")
                if value is not None:
                    groups[group][rest] = value
            found.add(groups["git"], groups["versions"], groups["hardware"], times)
            if status == "done":
                found.add_protocol(task, dict(zip(settings.COMPARABLE, observed, strict=True)), times)
        return found

    def csv(self) -> Iterator[str]:
        """Line by line; lists are JSON, what is absent is empty."""
        lines: list[str] = []
        writer = csv.writer(_Into(lines), lineterminator="\n")

        def written(values: Iterable[Any]) -> str:
            writer.writerow([text(value) if type(value) in _ODD else value for value in values])
            return lines.pop()[:-1]

        yield written(self.names) + "\n"
        # Few are different: each is made once.
        codes: dict[bytes, str] = {}
        ends: dict[int, str] = {}
        for own, code, place in self:
            key = marshal.dumps(code, 2)
            if key not in codes:
                codes[key] = "," + written(code) if self.code else ""
            if place not in ends:
                base = self.bases[place]
                ends[place] = "," + written(map(base.get, self.shared)) if self.shared else ""
            yield f"{written(own)}{codes[key]}{ends[place]}\n"


_FLAGS = ("status", "task", *settings.COMPARABLE)
_ODD = {bool, list, dict}
_TEXT = {str}
_JSON = json.JSONEncoder(ensure_ascii=False).encode
_JSON_TEXT = json.encoder.encode_basestring


def text(value: Any) -> Any:
    """A value as csv has it: JSON for what is neither text nor a number."""
    if type(value) is list and _TEXT.issuperset(map(type, value)):
        return f"[{', '.join(map(_JSON_TEXT, value))}]"  # the same, and faster
    return _JSON(value) if type(value) in _ODD else value


class _Into:
    """A file whose every write is an entry of a list."""

    def __init__(self, lines: list[str]) -> None:
        self.write = lines.append


def place(name: str) -> tuple[int, int, tuple[object, ...]]:
    """Sorts the names of a flat row: plain fields first, then group by group."""
    group, dot, rest = name.partition(".")
    if not dot:
        return (0, FIELDS[Record].index(name), ())
    known = FIELDS[GROUPS[group]] if group in GROUPS else ()
    return (1 + _ORDER.index(group), known.index(rest) if rest in known else 0, natural(rest))


def _picker(names: Sequence[str], wanted: Sequence[str]) -> Callable[[Values], Values]:
    """From values of `names`, with a None behind them, to those of `wanted`."""
    place = {name: number for number, name in enumerate(names)}
    numbers = [place.get(name, -1) for name in wanted]
    if len(numbers) > 1:
        return operator.itemgetter(*numbers)
    return lambda values: tuple(values[number] for number in numbers)
