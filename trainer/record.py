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
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERSION = 1
FILENAME = "record.json"


class CorruptRecord(ValueError):
    """A `record.json` that can't be read as a record of this version; says where and why."""


@dataclass
class Metric:
    """The task's own metric: what a table shows."""

    name: str | None = None
    value: float | None = None
    higher_is_better: bool | None = None
    split: str | None = None  # the split it was computed on
    checkpoint: str | None = None  # "best" on the selection split, or "last"
    step: int | None = None  # the optimizer step of that checkpoint


@dataclass
class Data:
    """Numbers of examples, after limits and splits."""

    protocol: str | None = None  # "dev" or "split"
    train: int | None = None
    select: int | None = None  # the split on which the checkpoint was chosen
    report: int | None = None  # the split that the metric is reported on
    labels: int | None = None  # classes; 1 for a regression
    truncated: int | None = None  # texts cut at the longest length that the model takes


@dataclass
class Steps:
    total: int | None = None
    done: int | None = None  # fewer than total after early stopping
    epochs: float | None = None
    skipped: int | None = None  # steps left out because a gradient was not finite


@dataclass
class Params:
    """Numbers of parameters; the head is never part of an adapter's count."""

    total: int | None = None  # backbone, adapters and head, at the start
    head: int | None = None
    adapter_start: int | None = None  # trainable, by real shapes
    adapter_end: int | None = None
    effective: int | None = None  # at the end, without what a mask or a zero rank switches off
    closed_form: int | None = None  # what the method's formula says for adapter_start


@dataclass
class Rank:
    """Sums over the adapted layers; absent for methods without a rank."""

    layers: int | None = None
    start: int | None = None
    end: int | None = None


@dataclass
class Memory:
    """Bytes, computed from shapes and storages; peak_rss and CUDA's are measured.

    The first four are the largest over the run's steps: what a machine must hold. What is left once
    ranks have gone, or has come with them, stands in the two that end in `_end`.
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


@dataclass
class Time:
    """Seconds spent and what they yielded, over all parts of an interrupted run."""

    train: float | None = None
    eval: float | None = None
    tokens_per_second: float | None = None  # in training, padding left out
    steps_per_second: float | None = None


@dataclass
class Record:
    """One run. `status` is "done" or "failed"; a failed run has an `error` and no metrics."""

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
        return {name: value for name, value in flatten(dataclasses.asdict(self)) if value is not None}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Record:
        """The record that a flat row stands for. Raises `CorruptRecord`."""
        if row.get("version") != VERSION:
            raise CorruptRecord(f"version: {row.get('version')!r}, this is version {VERSION}")
        parts: dict[str, Any] = {}
        known = {f.name for f in dataclasses.fields(cls)}
        for name, value in row.items():
            head, _, rest = name.partition(".")
            if head not in known:
                raise CorruptRecord(f"unknown field {name!r}")
            if head in _NAMESPACES and not rest:
                raise CorruptRecord(f"{head}: {value!r} is not a group")
            if rest and head not in _NAMESPACES:
                raise CorruptRecord(f"{name}: {head} is no group")
            if rest:
                parts.setdefault(head, {})[rest] = value
            else:
                parts[head] = value
        try:
            for name, group_class in _GROUPS.items():
                parts[name] = group_class(**parts.get(name, {}))
            record = cls(**parts)
        except TypeError as error:
            raise CorruptRecord(str(error).replace("__init__() ", "")) from None
        record._check()
        return record

    def _check(self) -> None:
        _check_fields(self, "")
        for name in _GROUPS:
            _check_fields(getattr(self, name), f"{name}.")
        if not isinstance(self.git.get("commit", ""), str):
            raise CorruptRecord(f"git.commit: {self.git['commit']!r} is not text")
        if self.status not in ("done", "failed"):
            raise CorruptRecord(f"status: {self.status!r}, allowed: done, failed")
        if self.status == "done" and self.metric.value is None:
            raise CorruptRecord("metric.value: missing in a finished run")
        if self.status == "failed" and (self.metric != Metric() or self.metrics):
            raise CorruptRecord("metric: a failed run has none")


_GROUPS: dict[str, type] = {
    "metric": Metric,
    "data": Data,
    "steps": Steps,
    "params": Params,
    "rank": Rank,
    "memory": Memory,
    "time": Time,
}

# Fields that stand as `name.rest` on disk.
_NAMESPACES = {*_GROUPS, "config", "git", "versions", "hardware", "metrics", "method"}

# What a field's annotation allows, by the annotation's first word.
_ALLOWED: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "text"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a finite number"),
    "bool": ((bool,), "true or false"),
    "list[str]": ((list,), "a list"),
}
_FIELDS = {
    cls: [(f.name, str(f.type).partition(" ")[0]) for f in dataclasses.fields(cls)]
    for cls in (Record, *_GROUPS.values())
}
_REQUIRED = ("run_id", "study", "variant", "task", "model", "seed", "status")


def _check_fields(part: Any, prefix: str) -> None:
    """Raises `CorruptRecord` for a value that is not of its field's kind."""
    for name, annotation in _FIELDS[type(part)]:
        value = getattr(part, name)
        if annotation not in _ALLOWED or (value is None and name not in _REQUIRED):
            continue
        kinds, what = _ALLOWED[annotation]
        if type(value) not in kinds or (isinstance(value, float) and not math.isfinite(value)):
            raise CorruptRecord(f"{prefix}{name}: {value!r} is not {what}")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a tree of mappings as `("a.b.c", value)`; lists are leaves, empty mappings vanish."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def write(record: Record, folder: str | os.PathLike[str]) -> Path:
    """Writes `folder/record.json` so that a reader sees the whole record or none."""
    record._check()
    return write_json(Path(folder) / FILENAME, record.row())


def write_json(path: Path, content: Any) -> Path:
    """Writes JSON to a temporary name beside `path`, then renames: never a half-written file."""
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
    path = Path(folder) / FILENAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptRecord(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        row = json.loads(text)
        if not isinstance(row, dict):
            raise CorruptRecord("not an object")
        return Record.from_row(row)
    except (ValueError, RecursionError) as error:
        raise CorruptRecord(f"{path}: {error}") from None


def find(*roots: str | os.PathLike[str]) -> Iterator[Path]:
    """Folders below `roots` (themselves included) that hold a record, in sorted order."""
    for root in roots:
        for folder, names, files in os.walk(root):
            names.sort()
            if FILENAME in files:
                yield Path(folder)
