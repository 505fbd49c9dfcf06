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
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from trainer import identity_v1
from trainer.identity import flatten
from trainer.identity import run_id as hashed
from trainer.record_parts import Data, Files, Memory, Metric, Params, Rank, Steps, Time
from trainer.record_text import CHECKSUM, CorruptRecord, checksum, is_as_written, parse, text_of, write_json

VERSION = 2
FILENAME = "record.json"
CONFIG = "config.yaml"  # beside it from the start of a run
REPLACED = ".replaced"  # in a study's folder: runs that were done again
STATUSES = ("done", "failed", "pruned")


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

    def row(self) -> dict[str, Any]:
        """The flat row as it is written: its fields and their checksum."""
        fields = self.fields()
        return fields | {CHECKSUM: checksum(fields)}

    def fields(self) -> dict[str, Any]:
        """All fields, names joined by dots; absent numbers are left out, null settings are not."""
        tree = {name: getattr(self, name) for name in FIELDS[Record]}
        for name, group in GROUPS.items():
            tree[name] = {rest: getattr(tree[name], rest) for rest in FIELDS[group]}
        extra = tree.pop("extra")
        return {name: value for name, value in flatten(tree) if value is not None or name.startswith(_SETTINGS)} | extra

    @classmethod
    def from_row(cls, row: Mapping[str, Any], *, as_written: bool = False) -> Record:
        """The record that a flat row stands for. Raises `CorruptRecord`.

        as_written: whether it is known that nobody has edited the row since it was written.
        """
        check(row, as_written=as_written)
        parts: dict[str, dict[str, Any]] = {name: {} for name in ("", "extra", *GROUPS, *OPEN_GROUPS)}
        for (group, name), value in zip(_shape(tuple(row)).places, row.values(), strict=True):
            parts[group][name] = value
        plain = parts.pop("")
        plain.pop(CHECKSUM, None)
        if plain["version"] == 1:
            parts["identity"] = identity_v1.identity(parts["config"])
        known = {name: group(**parts.pop(name)) for name, group in GROUPS.items()}
        return cls(**plain, **known, **parts)  # type: ignore[arg-type]


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

# Groups of any names; in Python they are dictionaries.
OPEN_GROUPS = ("config", "identity", "git", "code", "versions", "hardware", "metrics", "method")

_SETTINGS = ("config.", "identity.")

FIELDS = {cls: tuple(f.name for f in dataclasses.fields(cls)) for cls in (Record, *GROUPS.values())}

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

    places: for each name the group and the name in it: "" for a plain field, "extra" for what no record of today has.
    types: by name the types that a value may have, where not any may stand there.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.places = [_place(name) for name in names]
        self.types = {name: types for name in names if (types := _types(name)) is not None}
        self.problem = next(filter(None, map(_misplaced, names)), None)
        if self.problem is None and (missing := [name for name in _REQUIRED if name not in names]):
            self.problem = f"{missing[0]}: None is not {_KINDS[missing[0]][1]}"


_shape = functools.lru_cache(1000)(_Shape)


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


def _misplaced(name: str) -> str | None:
    """What is wrong with a name, whatever its value."""
    head, _, rest = name.partition(".")
    is_group = head in GROUPS or head in OPEN_GROUPS
    if is_group and not rest:
        return f"{head}: not a group of fields"
    return f"{name}: {head} is no group" if rest and not is_group and head in FIELDS[Record] else None


def check(row: Mapping[str, Any], *, as_written: bool = False) -> None:
    """Raises `CorruptRecord` for a row that is no record, or was edited after it was written.

    as_written: whether the latter is known not to be so.
    """
    version = row.get("version")
    if type(version) is not int or version < 1:
        raise CorruptRecord(f"version: {version!r}, allowed: a whole number ≥ 1")
    shape = _shape(tuple(row))
    if shape.problem:
        raise CorruptRecord(shape.problem)
    for name, types in shape.types.items():
        value = row[name]
        if (
            type(value) not in types
            or (type(value) is float and not math.isfinite(value))
            or (type(value) is list and not all(type(text) is str for text in value))
        ):
            kind = _ALLOWED["float"] if name.startswith("metrics.") else _KINDS[name]
            raise CorruptRecord(f"{name}: {value!r} is not {kind[1]}")
    if row["status"] not in STATUSES:
        raise CorruptRecord(f"status: {row['status']!r}, allowed: {', '.join(STATUSES)}")
    if row["status"] == "done" and row.get("metric.value") is None:
        raise CorruptRecord("metric.value: missing in a finished run")
    if row["status"] != "done" and any(row[name] is not None for name in row if name.startswith(_MEASURED)):
        raise CorruptRecord(f"metric: a {row['status']} run has none")
    if not as_written:
        _refuse_edited(row)


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


def read(folder: str | os.PathLike[str]) -> Record | None:
    """The record in a run's folder, or None where there is none yet.

    Raises `CorruptRecord`, naming the file, for one that is there but can't be trusted.
    """
    path = f"{os.fspath(folder)}{os.sep}{FILENAME}"
    try:
        with open(path, "rb", buffering=0) as file:
            content = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CorruptRecord(f"{path}: {error.strerror or error}") from None
    try:
        as_written = is_as_written(content)
        # orjson is four times as fast, and makes a float of a whole number above 64 bits.
        row = orjson.loads(content) if as_written and not _LONG.search(content) else parse(str(content, "utf-8"))
        return Record.from_row(row, as_written=as_written)
    except (ValueError, RecursionError) as error:
        raise CorruptRecord(f"{path}: {error}") from None


def misplaced(run_id: str, folder: str | os.PathLike[str]) -> str | None:
    """Why the record of a run is not believed where it lies, in one line; None in a folder that has the run's name.

    The folder above may have any name: whole studies are copied.
    """
    name = os.path.basename(folder)
    if name != run_id:  # called "." or reached over a link
        name = os.path.basename(os.path.realpath(folder))
    return None if name == run_id else f"{os.path.join(folder, FILENAME)}: run_id: {run_id!r} in the folder of {name!r}"


_LONG = re.compile(rb"[ \[:]-?\d{19}")
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
