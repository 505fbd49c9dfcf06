"""`record.json`: one flat, versioned row per run, and the folder it lies in.

A run's folder is complete when `record.json` is in it: the record is written last, to a
temporary name, and renamed. A reader sees a whole record or none.

In Python a record is a tree of small dataclasses; on disk it is one flat object whose
names are the path through that tree, joined by dots (`metric.value`, `memory.optimizer`,
`config.variant.rank`). Numbers that were not measured are absent, never zero.

A record of version 1 is read as one of today; what it did not know is blank. Of a version that is still to come the
unknown fields are kept as they are.

This module needs little more than the standard library: `analysis` reads with it. The parts of a record are in
`record_parts`; how its text is written, hashed and read back is in `record_text`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

import orjson

from trainer import identity_v1
from trainer.identity import flatten, reduced
from trainer.identity import run_id as hashed
from trainer.record_parts import Data, Files, Memory, Metric, Params, Rank, Steps, Time
from trainer.record_text import CHECKSUM, CorruptRecord, checksum, is_as_written, parse, text_of, write_json

VERSION = 2
FILENAME = "record.json"
CONFIG = "config.yaml"  # beside it from the start of a run
ADAPTER = Path("adapter") / "state"  # beside it at the end: what training changed
REPLACED = ".replaced"  # in a study's folder: runs that were done again
STATUSES = ("done", "failed", "pruned")


# Groups of any names; in Python they are dictionaries.
OPEN_GROUPS = ("config", "identity", "git", "code", "versions", "hardware", "metrics", "method")


@dataclass(slots=True)
class Record:
    """One run. `status` is "done", "failed" or "pruned" (stopped by a search); only a done one has metrics, others
    say why in `error`."""

    run_id: str
    study: str
    variant: str
    task: str
    model: str
    seed: int
    status: str = "done"
    error: str | None = None
    version: int = VERSION
    started: str | None = None  # UTC, ISO 8601
    finished: str | None = None
    overrides: list[str] = field(default_factory=list)  # as typed on the command line
    config: dict[str, Any] = field(default_factory=dict)  # every setting that decides the result, flattened
    identity: dict[str, Any] = field(default_factory=dict)  # those of them that run_id is the hash of
    git: dict[str, Any] = field(default_factory=dict)  # commit, dirty
    code: dict[str, str] = field(default_factory=dict)  # variant: hash of the method's own code
    versions: dict[str, str] = field(default_factory=dict)  # python, torch, transformers, …
    hardware: dict[str, Any] = field(default_factory=dict)
    metric: Metric = field(default_factory=Metric)
    metrics: dict[str, float] = field(default_factory=dict)  # every metric, by name
    method: dict[str, float] = field(default_factory=dict)  # what the method says of itself, see Variant.report
    data: Data = field(default_factory=Data)
    steps: Steps = field(default_factory=Steps)
    params: Params = field(default_factory=Params)
    rank: Rank = field(default_factory=Rank)
    memory: Memory = field(default_factory=Memory)
    time: Time = field(default_factory=Time)
    files: Files = field(default_factory=Files)
    extra: dict[str, Any] = field(default_factory=dict)  # fields of a newer version, as they were read

    def identity_hash(self) -> str:
        """The name that its identity gives to a run; `run_id` in a record that nobody edited."""
        return hashed(self.identity)

    def row(self) -> dict[str, Any]:
        """The flat row as it is written: its fields and their checksum."""
        fields = self.fields()
        return fields | {CHECKSUM: checksum(fields)}

    def fields(self, groups: Iterable[str] = OPEN_GROUPS) -> dict[str, Any]:
        """All fields, names joined by dots; absent numbers are left out, null settings are not.

        groups: those of any names that are among them.
        """
        found = {name: value for name, value in zip(_NAMES, _values(self), strict=True) if value is not None}
        for group in groups:
            pairs = flatten(getattr(self, group), f"{group}.")
            found.update(pairs if group in _SETTINGS else ((name, value) for name, value in pairs if value is not None))
        return found | self.extra

    @classmethod
    def from_row(cls, row: Mapping[str, Any], *, as_written: bool = False, hold: Hold | None = None) -> Record:
        """The record that a flat row stands for. Raises `CorruptRecord`.

        as_written: whether it is known that nobody has edited the row since it was written. hold: as for `read`.
        """
        shape = check(row, as_written=as_written)
        hold = hold or _hold
        values = (*row.values(), None)
        groups = {name: group(*of(values)) for name, group, of in shape.groups}
        parts = {name: dict(zip(names, of(values), strict=True)) for name, names, of in shape.parts}
        held = {name: hold(name, names, of(values)) for name, names, of in shape.held}
        plain = parts.pop("")
        plain.pop(CHECKSUM, None)
        if plain["version"] == 1:
            identity = reduced(*identity_v1.read(held["config"]))
            held["identity"] = hold("identity", tuple(identity), tuple(identity.values()))
        return cls(**plain, **groups, **parts, **held)  # type: ignore[arg-type]


# What makes the dictionary of a group from its name, the names in it and their values.
Hold = Callable[[str, tuple[str, ...], Sequence[Any]], Any]


def _hold(group: str, names: tuple[str, ...], values: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(names, values, strict=True))


GROUPS: dict[str, type] = {
    "metric": Metric,
    "data": Data,
    "steps": Steps,
    "params": Params,
    "rank": Rank,
    "memory": Memory,
    "time": Time,
    "files": Files,
}

_OWN = ("metrics", "method")  # those that no two runs have in common

_SETTINGS = ("config", "identity")  # in which a null is a value

FIELDS = {cls: tuple(f.name for f in dataclasses.fields(cls)) for cls in (Record, *GROUPS.values())}

# Every field of a name that is known beforehand.
_NAMES = tuple(
    name
    for head in FIELDS[Record]
    if head not in (*OPEN_GROUPS, "extra")
    for name in ([f"{head}.{rest}" for rest in FIELDS[GROUPS[head]]] if head in GROUPS else [head])
)
_values: Callable[[Record], tuple[Any, ...]] = attrgetter(*_NAMES)

_Kind = tuple[frozenset[type], str]  # the types that are allowed, and how an error calls them

# What a field's annotation allows, by the annotation's first word.
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


# What each field may be, by its name in a row.
_KINDS = _kinds(Record) | {"git.commit": _ALLOWED["str"]}
for _name, _group in GROUPS.items():
    _KINDS |= _kinds(_group, f"{_name}.")

_REQUIRED = ("run_id", "study", "variant", "task", "model", "seed", "status", "version")


class _Shape:
    """What rows with the same names have in common; a study has some dozens of shapes.

    groups: the name and class of each of `GROUPS`, and what takes the values of its fields from those of a row, behind
    which there is a None for the absent ones. held: each of `OPEN_GROUPS` that runs may have in common, and its names.
    parts: all others; plain fields are of the part "". types: by name the types that a value may have, where not any
    may stand there. lists: the names that may have a list.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        places: dict[str, dict[str, int]] = {part: {} for part in ("", "extra", *GROUPS, *OPEN_GROUPS)}
        for number, name in enumerate(names):
            part, rest = _place(name)
            places[part][rest] = number
        self.groups = [
            (name, group, _getter([places[name].get(rest, -1) for rest in FIELDS[group]]))
            for name, group in GROUPS.items()
        ]
        open_parts = [(part, tuple(own), _getter(own.values())) for part, own in places.items() if part not in GROUPS]
        self.held = [part for part in open_parts if part[0] in OPEN_GROUPS and part[0] not in _OWN]
        self.parts = [part for part in open_parts if part not in self.held]
        self.types = {name: types for name in names if (types := _types(name)) is not None}
        self.lists = [name for name, types in self.types.items() if list in types]
        self.seen: set[tuple[type, ...]] = set()  # types of values that were found to be right
        self.misplaced = [name for name in names if _misplaced(name)]
        self.missing = [name for name in _REQUIRED if name not in names]


_shape = functools.lru_cache(1000)(_Shape)


def _getter(places: Collection[int]) -> Callable[[tuple[Any, ...]], Sequence[Any]]:
    """What takes the values at these places."""
    if len(places) > 1:
        return itemgetter(*places)
    return lambda values: [values[place] for place in places]


def _place(name: str) -> tuple[str, str]:
    head, _, rest = name.partition(".")
    if head in OPEN_GROUPS or (head in GROUPS and name in _KINDS):
        return head, sys.intern(rest)
    plain = not rest and head in (CHECKSUM, *FIELDS[Record]) and head != "extra"
    return ("", name) if plain else ("extra", name)


def _types(name: str) -> frozenset[type] | None:
    if name.startswith("metrics."):
        return _ALLOWED["float"][0]
    kind = _KINDS.get(name)
    return kind and (kind[0] if name in _REQUIRED else kind[0] | {type(None)})


def _misplaced(name: str) -> bool:
    """Whether a group stands where a value belongs, or a value where a group does."""
    head, _, rest = name.partition(".")
    is_group = head in GROUPS or head in OPEN_GROUPS
    return not rest if is_group else bool(rest) and head in FIELDS[Record]


def check(row: Mapping[str, Any], *, as_written: bool = False) -> _Shape:
    """Raises `CorruptRecord` for a row that is no record, or was edited after it was written; returns its shape.

    as_written: whether the latter is known not to be so.
    """
    version = row.get("version")
    if type(version) is not int or version < 1:
        raise CorruptRecord(f"version: {version!r}, allowed: a whole number ≥ 1")
    shape = _shape(tuple(row))
    for name in shape.misplaced:
        head, _, rest = name.partition(".")
        raise CorruptRecord(f"{name}: {head} is no group" if rest else f"{name}: {row[name]!r} is not a group")
    for name in shape.missing:
        raise CorruptRecord(f"{name}: None is not {_KINDS[name][1]}")
    types = tuple(map(type, row.values()))
    if not as_written or types not in shape.seen:  # of a row as it is written, no number is nan or inf
        for name, allowed in shape.types.items():
            value = row[name]
            if type(value) not in allowed or (type(value) is float and not math.isfinite(value)):
                raise CorruptRecord(_wrong(name, value))
        shape.seen.add(types)
    for name in shape.lists:
        if row[name] is not None and not all(type(text) is str for text in row[name]):
            raise CorruptRecord(_wrong(name, row[name]))
    if row["status"] not in STATUSES:
        raise CorruptRecord(f"status: {row['status']!r}, allowed: {', '.join(STATUSES)}")
    if row["status"] == "done" and row.get("metric.value") is None:
        raise CorruptRecord("metric.value: missing in a finished run")
    if row["status"] != "done" and any(row[name] is not None for name in row if name.startswith(_MEASURED)):
        raise CorruptRecord(f"metric: a {row['status']} run has none")
    if not as_written:
        _refuse_edited(row)
    return shape


def _wrong(name: str, value: Any) -> str:
    kind = _ALLOWED["float"] if name.startswith("metrics.") else _KINDS[name]
    return f"{name}: {value!r} is not {kind[1]}"


_MEASURED = ("metric.", "metrics.")


def _refuse_edited(row: Mapping[str, Any]) -> None:
    """Raises `CorruptRecord` where what a record says in two places differs."""
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


def write(record: Record, folder: str | os.PathLike[str]) -> Path:
    """Writes `folder/record.json` so that a reader sees the whole record or none."""
    row = record.row()
    check(row)
    return write_json(Path(folder) / FILENAME, row)


def refuse_unreadable(record: Record) -> None:
    """Raises `CorruptRecord` for a record that `read` would not give back as it is written.

    For one of a run that is yet to be: whatever is wrong with its names and settings is wrong before the training too.
    """
    row = {name: value for name, value in record.fields().items() if not name.startswith(_MEASURED)}
    row["status"] = "failed"  # which has no metric
    try:
        row[CHECKSUM] = checksum(row)
        again = Record.from_row(parse(text_of(row))).row()
    except (ValueError, TypeError) as error:
        raise CorruptRecord(str(error)) from None
    for name, value in row.items():
        if again.get(name) != value:
            raise CorruptRecord(f"{name}: {value!r} would be read as {again.get(name)!r}")


def read(folder: str | os.PathLike[str], hold: Hold | None = None) -> Record | None:
    """The record in a run's folder, or None where there is none yet.

    hold: for who reads many: makes the dictionaries of groups that runs may have in common, and may make one for all.
    Raises `CorruptRecord`, naming the file, for one that is there but can't be trusted.
    """
    path = f"{os.fspath(folder)}{os.sep}{FILENAME}"
    try:
        content = _content(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CorruptRecord(f"{path}: {error.strerror or error}") from None
    try:
        as_written = is_as_written(content)
        # orjson is four times as fast, and makes a float of a whole number above 64 bits.
        row = orjson.loads(content) if as_written and not _has_long(content) else parse(str(content, "utf-8"))
        return Record.from_row(row, as_written=as_written, hold=hold)
    except (ValueError, RecursionError) as error:
        raise CorruptRecord(f"{path}: {error}") from None


def _content(path: str) -> bytes:
    # A study has thousands of records of a few kilobytes: opening a Python file takes longer than reading one.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        content = part = os.read(handle, _CHUNK)
        while len(part) == _CHUNK:
            part = os.read(handle, _CHUNK)
            content += part
        return content
    finally:
        os.close(handle)


_CHUNK = 1 << 16


def misplaced(run_id: str, folder: str | os.PathLike[str]) -> str | None:
    """Why the record of a run is not believed where it lies, in one line; None in a folder that has the run's name.

    The folder above may have any name: whole studies are copied.
    """
    name = os.path.basename(folder)
    if name != run_id:  # called "." or reached over a link
        name = os.path.basename(os.path.realpath(folder))
    return None if name == run_id else f"{os.path.join(folder, FILENAME)}: run_id: {run_id!r} in the folder of {name!r}"


def _has_long(content: bytes) -> bool:
    """Whether there may be a whole number of 19 digits or more in a file as it is written."""
    digits = content.translate(_ANY_DIGIT)  # searched for twice, a tenth of a regular expression's time
    return any(start + b"0" * 19 in digits for start in (b" ", b"-"))


_ANY_DIGIT = bytes.maketrans(b"123456789", b"000000000")
_HYDRA = f"{os.sep}.hydra"  # of a multirun's own files
_SEPARATORS = (os.sep, *filter(None, [os.altsep]))


def find(
    *roots: str | os.PathLike[str],
    unread: Callable[[OSError], None] | None = None,
    begun: Callable[[str], None] | None = None,
) -> Iterator[str]:
    """Folders below `roots` (themselves included) that hold a record, in sorted order.

    `unread` is called with the error for a folder that can't be looked into, `begun` with one in which a run has begun
    and left no record yet. Links to folders are not followed.
    """
    for root in roots:
        # Names, not paths: a study has thousands of runs in one folder. The last is the next.
        waiting = [("", [os.fspath(root)])]
        while waiting:
            above, names = waiting[-1]
            if not names:
                waiting.pop()
                continue
            folder = above + names.pop()
            below: list[str] = []
            found = configured = False
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name == FILENAME:
                            found = True
                        elif entry.name != REPLACED and entry.is_dir(follow_symlinks=False):
                            below.append(entry.name)
                        elif entry.name == CONFIG:
                            configured = True
            except OSError as error:
                if unread is not None:
                    unread(error)
                continue
            if found:
                yield folder
            elif configured and begun is not None and not folder.endswith(_HYDRA):
                begun(folder)
            if not below:
                continue
            below.sort(reverse=True)
            waiting.append((folder if folder.endswith(_SEPARATORS) else folder + os.sep, below))
