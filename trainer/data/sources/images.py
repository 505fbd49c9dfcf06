"""The user's own images: a folder for each class, or a table that names files or holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainer.data.images import decoded
from trainer.data.sources import encoded_files
from trainer.data.sources.types import TaskData


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
        encoded_files.check(self.train_path, self.holdout)

    def load(self) -> TaskData:
        """`file`, `image`, `label` of train and validation. Raises `ConfigError`, which names a file."""
        return encoded_files.load(self._paths, self._columns, self.holdout)

    def identity(self) -> dict[str, str]:
        """The hash of each part's images and labels, in their order."""
        return encoded_files.identity(self._paths, self._columns)

    @property
    def _paths(self) -> dict[str, str | None]:
        return {"train": self.train_path, "validation": self.validation_path}

    @property
    def _columns(self) -> encoded_files.Columns:
        return columns(self.image, self.label)


def columns(image: str, label: str | None) -> encoded_files.Columns:
    """Returns the columns of images and their classes, with their names in a table."""
    return encoded_files.Columns("image", "image", "label", (image, label), _decode)


def _decode(content: bytes) -> Any:
    return decoded(content, 3)
