"""A record as a flat row: what each name stands for, which values it may have, and the check of a whole row."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from operator import itemgetter
from typing import Any

from trainer.identity import run_id as hashed
from trainer.record_fields import FIELDS, GROUPS, OPEN_GROUPS, STATUSES, Fields
from trainer.record_text import CHECKSUM, CorruptRecord, checksum

NULLABLE = ("config", "identity")  # groups in which null is a value and not an absent number
MEASURED = ("metric.", "metrics.", "select.")  # prefixes of the fields that only a finished run has

# The dictionaries of a record in the order of `Fields`: those that runs have in common, grouped by what they vary with,
# and those that differ between any two runs.
_SHARED = (("config",), ("identity",), ("git", "code", "versions", "hardware"))
_UNSHARED = ("metrics", "select", "method", "extra")

# Names of all fields outside the open groups.
NAMES = tuple(
    name
    for head in FIELDS[Fields]
    if head not in (*OPEN_GROUPS, "extra")
    for name in ([f"{head}.{rest}" for rest in FIELDS[GROUPS[head]]] if head in GROUPS else [head])
)

_PLAIN = tuple(name for name in FIELDS[Fields] if name not in (*OPEN_GROUPS, *GROUPS, "extra"))

_Kind = tuple[frozenset[type], str]  # the allowed types, and their name in an error

# By the first word of a field's annotation.
_ALLOWED: dict[str, _Kind] = {
    "str": (frozenset({str}), "text"),
    "int": (frozenset({int}), "a whole number"),
    "float": (frozenset({int, float}), "a finite number"),
    "bool": (frozenset({bool}), "true or false"),
    "list[str]": (frozenset({list}), "a list of texts"),
}


def _kinds(cls: type, prefix: str = "") -> dict[str, _Kind]:
    words = {f.name: str(f.type).partition(" ")[0] for f in dataclasses.fields(cls)}
    return {f"{prefix}{name}": _ALLOWED[word] for name, word in words.items() if word in _ALLOWED}


# By the field's name in a row.
_KINDS = _kinds(Fields) | {"git.commit": _ALLOWED["str"]}
for _name, _group in GROUPS.items():
    _KINDS |= _kinds(_group, f"{_name}.")

_REQUIRED = ("run_id", "study", "variant", "task", "model", "seed", "status", "version")


class _Layout:
    """The layout shared by all rows with the same names, cached: a study has some dozens of layouts.

    plain: a getter of the fields outside any group from a row's values, which are followed by a None for absent fields.
    groups: the class of each of `GROUPS`, and a getter of its fields. shared: for each of `_SHARED` the names of the
    groups with those of their entries, and a getter of all. open: entry names and getter of each of `_UNSHARED`.
    types: allowed types by name, for names that have a fixed type. lists: names whose value may be a list.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        indices: dict[str, dict[str, int]] = {part: {} for part in ("", "extra", *GROUPS, *OPEN_GROUPS)}
        for number, (part, rest) in enumerate(map(_part, names)):
            indices[part][rest] = number
        self.plain = _getter([indices[""].get(name, -1) for name in _PLAIN])
        self.groups = [
            (group, _getter([indices[name].get(rest, -1) for rest in FIELDS[group]])) for name, group in GROUPS.items()
        ]
        self.shared = [
            (
                tuple((part, tuple(indices[part])) for part in parts),
                _getter([index for part in parts for index in indices[part].values()]),
            )
            for parts in _SHARED
        ]
        self.open = [(tuple(indices[part]), _getter(indices[part].values())) for part in _UNSHARED]
        self.types = {name: types for name in names if (types := _types(name)) is not None}
        self.lists = [name for name, types in self.types.items() if list in types]
        self.seen: set[tuple[type, ...]] = set()  # combinations of value types that passed the check
        self.misplaced = list(filter(_misplaced, names))
        self.missing = [name for name in _REQUIRED if name not in indices[""]]


_layout = functools.lru_cache(1000)(_Layout)
_by_name = functools.lru_cache(10_000)  # layouts have most of their names in common


def _getter(indices: Collection[int]) -> Callable[[tuple[Any, ...]], Sequence[Any]]:
    """A function that takes the values at these indices; `itemgetter` returns no tuple for fewer than two."""
    if len(indices) > 1:
        return itemgetter(*indices)
    return lambda values: [values[index] for index in indices]


@_by_name
def _part(name: str) -> tuple[str, str]:
    """The group of a field, or "" or "extra", and the field's name within it."""
    head, _, rest = name.partition(".")
    if head in OPEN_GROUPS or (head in GROUPS and name in _KINDS):
        return head, sys.intern(rest)
    plain = not rest and head in (CHECKSUM, *FIELDS[Fields]) and head != "extra"
    return ("", name) if plain else ("extra", name)


@_by_name
def _types(name: str) -> frozenset[type] | None:
    if name.startswith(("metrics.", "select.")):
        return _ALLOWED["float"][0]
    kind = _KINDS.get(name)
    return kind and (kind[0] if name in _REQUIRED else kind[0] | {type(None)})


@_by_name
def _misplaced(name: str) -> bool:
    """Whether the name has a group in place of a value, or a value in place of a group."""
    head, _, rest = name.partition(".")
    is_group = head in GROUPS or head in OPEN_GROUPS
    return not rest if is_group else bool(rest) and head in FIELDS[Fields]


def check(row: Mapping[str, Any], *, as_written: bool = False) -> _Layout:
    """Returns the row's layout. Raises `CorruptRecord` if the row is not a record or was edited after it was written.

    as_written: whether the row's checksum has been verified.
    """
    version = row.get("version")
    if type(version) is not int or version < 1:
        raise CorruptRecord(f"version: {version!r}, allowed: a whole number ≥ 1")
    layout = _layout(tuple(row))
    for name in layout.misplaced:
        head, _, rest = name.partition(".")
        raise CorruptRecord(f"{name}: {head} is no group" if rest else f"{name}: {row[name]!r} is not a group")
    for name in layout.missing:
        raise CorruptRecord(f"{name}: None is not {_KINDS[name][1]}")
    types = tuple(map(type, row.values()))
    if not as_written or types not in layout.seen:  # a row with a valid checksum has no nan and no inf
        for name, allowed in layout.types.items():
            value = row[name]
            if type(value) not in allowed or (type(value) is float and not math.isfinite(value)):
                raise CorruptRecord(_wrong(name, value))
        layout.seen.add(types)
    for name in layout.lists:
        if row[name] is not None and not {str}.issuperset(map(type, row[name])):
            raise CorruptRecord(_wrong(name, row[name]))
    if row["status"] not in STATUSES:
        raise CorruptRecord(f"status: {row['status']!r}, allowed: {', '.join(STATUSES)}")
    if row["status"] == "done" and row.get("metric.value") is None:
        raise CorruptRecord("metric.value: missing in a finished run")
    if row["status"] != "done" and any(row[name] is not None for name in row if name.startswith(MEASURED)):
        raise CorruptRecord(f"metric: a {row['status']} run has none")
    if not as_written:
        _refuse_edited(row)
    return layout


def _wrong(name: str, value: Any) -> str:
    kind = _ALLOWED["float"] if name.startswith(("metrics.", "select.")) else _KINDS[name]
    return f"{name}: {value!r} is not {kind[1]}"


def _refuse_edited(row: Mapping[str, Any]) -> None:
    """Raises `CorruptRecord` if the checksum, or a field that is recorded twice, does not match."""
    if row["version"] > 1:
        if row.get(CHECKSUM) != checksum(row):
            raise CorruptRecord(f"{CHECKSUM}: {row.get(CHECKSUM)!r} is not that of the record, which was edited")
        return
    settings = {name.removeprefix("config."): value for name, value in row.items() if name.startswith("config.")}
    if row["run_id"] != hashed(settings):
        raise CorruptRecord(f"run_id: {row['run_id']!r} is not that of its config, which was edited")
    twice = {"seed": "config.seed", "metric.value": f"metrics.{row.get('metric.name')}"}
    twice |= {name: f"config.{name}.name" for name in ("variant", "task", "model")}
    for name, other in twice.items():
        if row.get(name) != row.get(other):
            raise CorruptRecord(f"{name}: {row.get(name)!r} is {row.get(other)!r} in {other}; one of them was edited")
