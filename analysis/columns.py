"""The rows of a spool on columns that all of them share, and their text as csv."""

from __future__ import annotations

import csv
import json
import marshal
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from analysis import runs, settings
from analysis.order import natural
from analysis.provenance import Provenance
from analysis.reading import Values
from analysis.spool import Spool
from trainer.record import FIELDS, GROUPS, Record

# Behind the plain fields; each of these is a group of names.
_ORDER = (
    "metric",
    "metrics",
    "method",
    "data",
    "steps",
    "params",
    "rank",
    "memory",
    "time",
    "git",
    "versions",
    "hardware",
)
_CODE = ("git.", "versions.", "hardware.")


class Columns:
    """Iterating gives the rows, each as (values of `own`, place in `bases`)."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self.listed: runs.Listed = spool.listed
        self.own = sorted({name for names in spool.names for name in names}, key=_place)
        # Settings but for seeds: the same in many rows, and so made once.
        self.bases = spool.bases
        self.shared = sorted({name for base in spool.bases for name in base}, key=natural)
        self._picks = [_picker(names, self.own) for names in spool.names]
        self._flags = [[name for name in names if _is_flag(name)] for names in spool.names]
        self._flag_picks = [_picker(*pair) for pair in zip(spool.names, self._flags, strict=True)]
        self._seen: Counter[tuple[int, bytes]] = Counter()

    @property
    def names(self) -> list[str]:
        """All columns: those of `own`, then those of `shared`."""
        return [*self.own, *(f"config.{name}" for name in self.shared)]

    def __iter__(self) -> Iterator[tuple[Values, int]]:
        self._seen.clear()
        for number, base, values in self._spool:
            self._seen[number, marshal.dumps(self._flag_picks[number](values), 2)] += 1
            yield self._picks[number](values), base

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
        for (number, key), times in self._seen.items():
            flags = dict(zip(self._flags[number], marshal.loads(key), strict=True))
            git, versions, hardware = (
                {name.removeprefix(group): value for name, value in flags.items() if name.startswith(group)}
                for group in _CODE
            )
            found.add(git, versions, hardware, times)
            if flags["status"] == "done":
                observed = {name: flags.get(name) for name in settings.COMPARABLE}
                found.add_protocol(flags["task"], observed, times)
        return found

    def csv(self) -> Iterator[str]:
        """Line by line; lists are JSON, what is absent is empty."""
        lines: list[str] = []
        writer = csv.writer(_Into(lines), lineterminator="\n")
        writer.writerow(self.names)
        yield lines.pop()
        ends: dict[int, str] = {}
        for values, place in self:
            end = ends.get(place)
            if end is None:
                base = self.bases[place]
                writer.writerow([text(base.get(name)) for name in self.shared])
                end = ends[place] = lines.pop()
            writer.writerow([text(value) if type(value) in _ODD else value for value in values])
            yield f"{lines.pop()[:-1]},{end}" if self.shared else lines.pop()


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


def _place(name: str) -> tuple[int, int, tuple[object, ...]]:
    group, dot, rest = name.partition(".")
    if not dot:
        return (0, FIELDS[Record].index(name), ())
    known = FIELDS[GROUPS[group]] if group in GROUPS else ()
    # Seeds are settings: the other settings are behind them.
    number = _ORDER.index(group) if group in _ORDER else len(_ORDER)
    return (1 + number, known.index(rest) if rest in known else 0, natural(rest))


def _is_flag(name: str) -> bool:
    return name in ("task", "status", *settings.COMPARABLE) or name.startswith(_CODE)


def _picker(names: Sequence[str], wanted: Sequence[str]) -> Callable[[Values], Values]:
    """From values of `names`, with a None behind them, to those of `wanted`; there are several of these."""
    place = {name: number for number, name in enumerate(names)}
    pick: Callable[[Values], Values] = operator.itemgetter(*(place.get(name, -1) for name in wanted))
    return pick
