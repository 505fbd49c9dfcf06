"""The user's own images: a folder for each class, or a table that names files or holds them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.images import decoded
from trainer.data.sources.checks import ids
from trainer.data.sources.classes import check_names, class_names, class_order
from trainer.data.sources.columns import Row, rows_data, split_by_text
from trainer.data.sources.paths import expanded
from trainer.data.sources.readers import read_columns
from trainer.data.sources.types import TaskData
from trainer.errors import ConfigError


@dataclass(frozen=True)
class Images:
    """A task from images of one's own.

    train_path, validation_path: each a folder, in which every class is a folder of images, or a table (.csv, .tsv,
    .jsonl, .parquet) with a column of files, as they are found from the table's folder, or of their bytes. image,
    label: the columns. Without a validation path the share `holdout` of the images is held out, by a hash of their
    bytes, so that a copy is on the same side. Classes are those of both.
    """

    train_path: str
    validation_path: str | None = None
    image: str = "image"
    label: str = "label"
    holdout: float = 0.1

    def __post_init__(self) -> None:
        if self.train_path == "???":
            raise ConfigError("task.source.train_path: not given; allowed: a folder of folders, or a table of files")
        if not 0 < self.holdout < 1:
            raise ConfigError(f"task.source.holdout: {self.holdout}; allowed: above 0 and below 1")

    def load(self) -> TaskData:
        """`file`, `image`, `label` of train and validation. Raises `ConfigError`, which names a file."""
        where = "task.source"
        splits: Mapping[str, Sequence[Row]] = self._splits()
        names = class_order(row["label"] for rows in splits.values() for row in rows)
        check_names(names, where)
        numbers = {name: number for number, name in enumerate(names)}
        if self.validation_path is None:
            splits = split_by_text(((row["hash"], row) for row in splits["train"]), self.holdout)
            if empty := [name for name, rows in splits.items() if not rows]:
                raise ConfigError(f"{where}.holdout: {self.holdout} leaves none for {empty[0]}; allowed: another share")
        own = iter(ids([f"{name} {row['hash']}" for name, rows in splits.items() for row in rows], None))
        found = {
            name: [
                {"id": next(own), "file": row["file"], "image": row["image"], "label": numbers[row["label"]]}
                for row in rows
            ]
            for name, rows in splits.items()
        }
        return rows_data(found, where, names)

    def identity(self) -> dict[str, str]:
        """The hash of each part's images and labels, in their order."""
        return {
            name: hashlib.sha256("\n".join(f"{row['hash']} {row['label']}" for row in rows).encode()).hexdigest()
            for name, rows in self._splits().items()
        }

    def _splits(self) -> dict[str, Sequence[Row]]:
        paths = {"train": self.train_path, "validation": self.validation_path}
        return {
            name: _rows(expanded(path), self.image, self.label, f"task.source.{name}_path")
            for name, path in paths.items()
            if path is not None
        }


def unsplit(path: Path, image: str, label: str | None, field: str) -> list[Row]:
    """`id`, `file`, `image` and `label`, a name, of the images in a folder or a table. Raises `ConfigError`.

    label: None where it has none, as in a folder without folders; the names are empty then.
    """
    rows = _rows(path, image, label, field)
    own = ids([row["hash"] for row in rows], None)
    return [
        {"id": key, "file": row["file"], "image": row["image"], "label": row["label"]}
        for key, row in zip(own, rows, strict=True)
    ]


@functools.lru_cache(maxsize=8)
def _rows(path: Path, image: str, label: str | None, field: str) -> tuple[Row, ...]:
    """`file`, `image`, `hash` and `label`, a name, of each image. Raises `ConfigError`."""
    where = f"{field}: {str(path)!r}"
    found = []
    images = _in_table(path, image, label, field) if not path.is_dir() else _in_folders(path, where)
    if path.is_dir() and label is None:
        images = ((file.name, _read(file, where, file.name), "") for file in _visible(path))
    for name, content, own in images:
        try:
            decoded(content, 3)
        except ValueError as error:
            raise ConfigError(f"{where}: {name} {error}") from None
        found.append({"file": name, "image": content, "hash": hashlib.sha256(content).hexdigest(), "label": own})
    if not found:
        raise ConfigError(f"{where} has no images; allowed: one or more")
    return tuple(found)


def _in_folders(path: Path, where: str) -> Iterator[tuple[str, bytes, str]]:
    """Of each image its file, its bytes and its class. What begins with a dot is passed over."""
    for folder in _visible(path):
        if not folder.is_dir():
            raise ConfigError(f"{where}: {folder.name} is no folder; allowed: a folder for each class, with its images")
        for file in _visible(folder):
            yield f"{folder.name}/{file.name}", _read(file, where, f"{folder.name}/{file.name}"), folder.name


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _in_table(path: Path, image: str, label: str | None, field: str) -> Iterator[tuple[str, bytes, str]]:
    names = [name for name in (image, label) if name is not None]
    table, where = read_columns(path, names, field), f"{field}: {str(path)!r}"
    labels = [""] * len(table[image]) if label is None else class_names(table[label], f"{where}, column {label!r}")
    for row, (value, own) in enumerate(zip(table[image], labels, strict=True), 1):
        if isinstance(value, Mapping):  # as `datasets` writes an image
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            yield f"row {row}", value, own
        elif isinstance(value, str) and value.strip():
            yield value, _read(path.parent / value, where, f"row {row}: {value!r}"), own
        else:
            raise ConfigError(f"{where}: row {row} is {_short(value)}; allowed: a file, or the bytes of one")


def _short(value: Any) -> str:
    return repr(value)[:60]


def _read(file: Path, where: str, name: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{where}: {name} can't be read: {error.strerror or error}") from None
