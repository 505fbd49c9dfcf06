"""`record.json`: one flat, versioned row per run, and the folder it lies in.

A run's folder is complete when `record.json` is in it: the record is written last, to a
temporary name, and renamed. A reader sees a whole record or none.

In Python a record is a tree of small dataclasses; on disk it is one flat object whose
names are the path through that tree, joined by dots (`metric.value`, `memory.optimizer`,
`config.variant.rank`). Numbers that were not measured are absent, never zero.

This module imports nothing but the standard library: `analysis` reads with it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

VERSION = 1
FILENAME = "record.json"
CONFIG = "config.yaml"  # beside it from the start of a run
STATUSES = ("done", "failed", "pruned")

T = TypeVar("T")


class CorruptRecord(ValueError):
    """A `record.json` that can't be read as a record of this version; says where and why."""


@dataclass(slots=True)
class Metric:
    """The task's own metric: what a table shows."""

    name: str | None = None
    value: float | None = None
    higher_is_better: bool | None = None
    split: str | None = None  # the split it was computed on
    checkpoint: str | None = None  # "best" on the selection split, or "last"
    step: int | None = None  # the optimizer step of that checkpoint


@dataclass(slots=True)
class Data:
    """Numbers of examples, after limits and splits."""

    protocol: str | None = None  # "dev" or "split"
    train: int | None = None
    select: int | None = None  # the split on which the checkpoint was chosen
    report: int | None = None  # the split that the metric is reported on
    labels: int | None = None  # classes; 1 for a regression
    truncated: int | None = None  # texts cut at the longest length that the model takes


@dataclass(slots=True)
class Steps:
    total: int | None = None
    done: int | None = None  # fewer than total after early stopping
    epochs: float | None = None
    skipped: int | None = None  # steps left out because a gradient was not finite


@dataclass(slots=True)
class Params:
    """Numbers of parameters; the head is never part of an adapter's count."""

    total: int | None = None  # backbone, adapters and head, at the start
    head: int | None = None
    adapter_start: int | None = None  # trainable, by real shapes
    adapter_end: int | None = None
    effective: int | None = None  # at the end, without what a mask or a zero rank switches off
    closed_form: int | None = None  # what the method's formula says for adapter_start


@dataclass(slots=True)
class Rank:
    """Sums over the adapted layers; absent for methods without a rank."""

    layers: int | None = None
    start: int | None = None
    end: int | None = None


@dataclass(slots=True)
class Memory:
    """Bytes, computed from shapes and storages; peak_rss and CUDA's are measured.

    The first four are the largest over the run's steps: what a machine must hold. What is left once
    ranks have gone, or has come with them, stands in the two that end in `_end`. Of several processes that
    share a run it is the one that needs most.
    """

    weights: int | None = None
    gradients: int | None = None
    optimizer: int | None = None
    activations: int | None = None  # saved for backward, in the largest training batch
    gradients_end: int | None = None
    optimizer_end: int | None = None
    adapter_file: int | None = None  # adapter and head on disk
    peak_rss: int | None = None  # of the process, reset when the run starts
    cuda_train_allocated: int | None = None
    cuda_train_reserved: int | None = None
    cuda_eval_allocated: int | None = None
    cuda_eval_reserved: int | None = None


@dataclass(slots=True)
class Time:
    """Seconds spent and what they yielded, over all parts of an interrupted run."""

    train: float | None = None
    eval: float | None = None
    tokens_per_second: float | None = None  # in training, padding left out
    steps_per_second: float | None = None


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
    config: dict[str, Any] = field(default_factory=dict)  # what run_id is the hash of, flattened
    git: dict[str, Any] = field(default_factory=dict)  # commit, dirty
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

    def row(self) -> dict[str, Any]:
        """The flat row, names joined by dots; absent numbers are left out."""
        tree = {name: getattr(self, name) for name in FIELDS[Record]}
        for name, group in GROUPS.items():
            tree[name] = {rest: getattr(tree[name], rest) for rest in FIELDS[group]}
        return {name: value for name, value in flatten(tree) if value is not None}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Record:
        """The record that a flat row stands for. Raises `CorruptRecord`."""
        check(row)
        parts: dict[str, Any] = {}
        for name, value in row.items():
            head, _, rest = name.partition(".")
            if rest:
                parts.setdefault(head, {})[rest] = value
            else:
                parts[head] = value
        for name, group in GROUPS.items():
            parts[name] = group(**parts.get(name, {}))
        return cls(**parts)


GROUPS: dict[str, type] = {
    "metric": Metric,
    "data": Data,
    "steps": Steps,
    "params": Params,
    "rank": Rank,
    "memory": Memory,
    "time": Time,
}

# Groups of any names; in Python they are dictionaries.
OPEN_GROUPS = ("config", "git", "versions", "hardware", "metrics", "method")

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


def _kind_of(name: str) -> _Kind | None:
    return _ALLOWED["float"] if name.startswith("metrics.") else _KINDS.get(name)


def types_of(name: str) -> frozenset[type] | None:
    """The types that the value of a field may have; None for a field that may be anything."""
    kind = _kind_of(name)
    if kind is None or name in _REQUIRED or name.startswith("metrics."):
        return kind and kind[0]
    return kind[0] | {type(None)}


def check(row: Mapping[str, Any]) -> None:
    """Raises `CorruptRecord` for a row that is no record of this version."""
    if row.get("version") != VERSION:
        raise CorruptRecord(f"version: {row.get('version')!r}, this is version {VERSION}")
    for name, value in row.items():
        head, _, rest = name.partition(".")
        is_group = head in GROUPS or head in OPEN_GROUPS
        if head not in FIELDS[Record] or (head in GROUPS and rest and name not in _KINDS):
            raise CorruptRecord(f"unknown field {name!r}")
        if is_group and not rest:
            raise CorruptRecord(f"{head}: {value!r} is not a group")
        if not is_group and name != head:
            raise CorruptRecord(f"{name}: {head} is no group")
    for name in dict.fromkeys([*_REQUIRED, *row]):
        _check_value(name, row.get(name))
    if row["status"] not in STATUSES:
        raise CorruptRecord(f"status: {row['status']!r}, allowed: {', '.join(STATUSES)}")
    if row["status"] == "done" and row.get("metric.value") is None:
        raise CorruptRecord("metric.value: missing in a finished run")
    measured = (value for name, value in row.items() if name.startswith(("metric.", "metrics.")))
    if row["status"] != "done" and any(value is not None for value in measured):
        raise CorruptRecord(f"metric: a {row['status']} run has none")


def _check_value(name: str, value: Any) -> None:
    kind, types = _kind_of(name), types_of(name)
    if kind is None or types is None:
        return
    bad = type(value) not in types or (isinstance(value, float) and not math.isfinite(value))
    if bad or (isinstance(value, list) and not all(type(text) is str for text in value)):
        raise CorruptRecord(f"{name}: {value!r} is not {kind[1]}")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a tree of mappings as `("a.b.c", value)`; lists are leaves, empty mappings vanish."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def write(record: Record, folder: str | os.PathLike[str]) -> Path:
    """Writes `folder/record.json` so that a reader sees the whole record or none."""
    row = record.row()
    check(row)
    return write_json(Path(folder) / FILENAME, row)


def refuse_unreadable(record: Record) -> None:
    """Raises `CorruptRecord` for a record that `read` would not give back as it is written.

    For one of a run that is yet to be: whatever is wrong with its names and settings is wrong before the training too.
    """
    row = {name: value for name, value in record.row().items() if not name.startswith(("metric.", "metrics."))}
    row["status"] = "failed"  # which has no metric
    try:
        text = json.dumps(row, allow_nan=False, ensure_ascii=False)
        text.encode()
        again = Record.from_row(parse(text)).row()
    except (ValueError, TypeError) as error:
        raise CorruptRecord(str(error)) from None
    for name, value in row.items():
        if again.get(name) != value:
            raise CorruptRecord(f"{name}: {value!r} would be read as {again.get(name)!r}")


def write_json(path: Path, content: Any) -> Path:
    """Writes JSON to a temporary name beside `path`, then renames: never a half-written file."""
    import tempfile  # analysis, which reads, comes up without it

    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def read(folder: str | os.PathLike[str]) -> Record | None:
    """The record in a run's folder, or None where there is none yet.

    Raises `CorruptRecord`, naming the file, for one that is there but can't be trusted.
    """
    return load(folder, lambda text: Record.from_row(parse(text)))


def load(folder: str | os.PathLike[str], make: Callable[[str], T]) -> T | None:
    """What `make` makes of the text of a folder's record, else as `read`."""
    path = f"{os.fspath(folder)}{os.sep}{FILENAME}"
    try:
        content = _content(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CorruptRecord(f"{path}: {error.strerror or error}") from None
    try:
        text = str(content, "utf-8")
        if b"\\u" in content:
            _refuse_halves(text)
        return make(text)
    except (ValueError, RecursionError) as error:
        raise CorruptRecord(f"{path}: {error}") from None


def _refuse_halves(text: str) -> None:
    """Raises `CorruptRecord` where an escape stands for half a character: no text that could be written anywhere."""
    try:
        json.dumps(json.loads(text), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise CorruptRecord(f"{error.object[error.start]!r} in a text is half a character") from None


def parse(text: str) -> dict[str, Any]:
    """The flat row that a text holds, not checked. Raises `ValueError` or `RecursionError`."""
    row = json.loads(text)
    if not isinstance(row, dict):
        raise CorruptRecord("not an object")
    return row


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
                        elif entry.is_dir(follow_symlinks=False):
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
