"""Images and sounds of one's own: a folder with a folder of files for each class, or a table of them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.sources.checks import ids, texts
from trainer.data.sources.classes import check_names, class_names, class_order
from trainer.data.sources.columns import Row, hold_out, rows_data
from trainer.data.sources.paths import expanded
from trainer.data.sources.readers import read_columns
from trainer.data.sources.types import TaskData
from trainer.errors import ConfigError

WHERE = "task.source"


@dataclass(frozen=True)
class Columns:
    """What a task's rows hold: `content`, an encoded file of what `noun` says, and `label` or `text` beside it.

    names: of both columns in a table; the second is None where nothing is beside, and values are empty then.
    decode: raises `ValueError` for content that can't be read.
    """

    noun: str
    content: str
    beside: str
    names: tuple[str, str | None]
    decode: Callable[[bytes], Any]


def check(train_path: str, holdout: float) -> None:
    """Raises `ConfigError` for settings that can't be right."""
    if train_path == "???":
        raise ConfigError(f"{WHERE}.train_path: not given; allowed: a folder of folders, or a table of files")
    if not 0 < holdout < 1:
        raise ConfigError(f"{WHERE}.holdout: {holdout}; allowed: above 0 and below 1")


def splits(paths: Mapping[str, str | None], columns: Columns) -> dict[str, Sequence[Row]]:
    """Reads the rows of each split that has a path: `file`, the content, its `hash`, and what is beside it."""
    return {
        name: _rows(expanded(path), columns, f"{WHERE}.{name}_path") for name, path in paths.items() if path is not None
    }


def load(paths: Mapping[str, str | None], columns: Columns, holdout: float) -> TaskData:
    """Returns train and validation. Raises `ConfigError`, which names a file.

    Without a path for validation the fraction `holdout` is held out by a hash of the content, so that a copy is on the
    same side.
    """
    found: Mapping[str, Sequence[Row]] = splits(paths, columns)
    names = None
    if columns.beside == "label":
        names = class_order(row["label"] for rows in found.values() for row in rows)
        check_names(names, WHERE)
    if len(found) == 1:
        found = hold_out(((row["hash"], row) for row in found["train"]), holdout)
    own = iter(ids([f"{name} {row['hash']}" for name, rows in found.items() for row in rows], None))
    numbers = {name: number for number, name in enumerate(names or ())}
    rows = {
        name: [
            {"id": next(own)}
            | {column: row[column] for column in ("file", columns.content)}
            | {columns.beside: numbers.get(row[columns.beside], row[columns.beside])}
            for row in rows
        ]
        for name, rows in found.items()
    }
    return rows_data(rows, WHERE, names)


def identity(paths: Mapping[str, str | None], columns: Columns) -> dict[str, str]:
    """Returns for each split the hash of its contents and of what is beside them, in their order."""
    return {
        name: hashlib.sha256("\n".join(f"{row['hash']} {row[columns.beside]}" for row in rows).encode()).hexdigest()
        for name, rows in splits(paths, columns).items()
    }


def unsplit(path: Path, columns: Columns, field: str) -> list[Row]:
    """Returns `id`, `file`, the content and what is beside it, a class by its name, of a folder or a table."""
    rows = _rows(path, columns, field)
    kept = ("file", columns.content, columns.beside)
    own = ids([row["hash"] for row in rows], None)
    return [{"id": key} | {name: row[name] for name in kept} for key, row in zip(own, rows, strict=True)]


@functools.lru_cache(maxsize=8)
def _rows(path: Path, columns: Columns, field: str) -> tuple[Row, ...]:
    where = f"{field}: {str(path)!r}"
    if path.is_dir() and columns.beside != "label":
        raise ConfigError(f"{where} is a folder; allowed: a table with a column {columns.names[1]!r}")
    found = []
    files = _in_folders(path, where) if path.is_dir() else _in_table(path, columns, field)
    if path.is_dir() and columns.names[1] is None:
        files = ((file.name, _read(file, where, file.name), "") for file in visible(path))
    for name, content, beside in files:
        try:
            columns.decode(content)
        except ValueError as error:
            raise ConfigError(f"{where}: {name} {error}") from None
        digest = hashlib.sha256(content).hexdigest()
        found.append({"file": name, columns.content: content, "hash": digest, columns.beside: beside})
    if not found:
        raise ConfigError(f"{where} has no {columns.noun}s; allowed: one or more")
    return tuple(found)


def _in_folders(path: Path, where: str) -> Iterator[tuple[str, bytes, str]]:
    """Yields for each file its name, its bytes and its class. What begins with a dot is passed over."""
    for folder in visible(path):
        if not folder.is_dir():
            raise ConfigError(f"{where}: {folder.name} is no folder; allowed: a folder for each class, with its files")
        for file in visible(folder):
            yield f"{folder.name}/{file.name}", _read(file, where, f"{folder.name}/{file.name}"), folder.name


def visible(folder: Path) -> list[Path]:
    """Returns what is in a folder, sorted, without what begins with a dot."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _in_table(path: Path, columns: Columns, field: str) -> Iterator[tuple[str, bytes, str]]:
    content, beside = columns.names
    table = read_columns(path, [name for name in (content, beside) if name is not None], field)
    where = f"{field}: {str(path)!r}"
    check = class_names if columns.beside == "label" else texts
    checked = [""] * len(table[content]) if beside is None else check(table[beside], f"{where}, column {beside!r}")
    for row, (value, own) in enumerate(zip(table[content], checked, strict=True), 1):
        if isinstance(value, Mapping):  # as `datasets` writes an image or a sound
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            yield f"row {row}", value, own
        elif isinstance(value, str) and value.strip():
            yield value, _read(path.parent / value, where, f"row {row}: {value!r}"), own
        else:
            raise ConfigError(f"{where}: row {row} is {repr(value)[:60]}; allowed: a file, or the bytes of one")


def _read(file: Path, where: str, name: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{where}: {name} can't be read: {error.strerror or error}") from None
