"""The user's own sounds, WAV files: a folder for each class, or a table that names files or holds them."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.data.sounds import decoded
from trainer.data.sources import encoded_files
from trainer.data.sources.types import TaskData
from trainer.errors import ConfigError


@dataclass(frozen=True)
class Sounds:
    """A task from sounds of one's own: what each is (label), or what is said in it (text).

    train_path, validation_path: each a folder, in which every class is a folder of sounds, or a table (.csv, .tsv,
    .jsonl, .parquet) with a column of files, as they are found from the table's folder, or of their bytes. audio,
    label, text: the columns; with a column of texts label is null. Without a validation path the share `holdout` of
    the sounds is held out, by a hash of their bytes, so that a copy is on the same side. Classes are those of both.
    """

    train_path: str
    validation_path: str | None = None
    audio: str = "audio"
    label: str | None = "label"
    text: str | None = None
    holdout: float = 0.1

    def __post_init__(self) -> None:
        encoded_files.check(self.train_path, self.holdout)
        if (self.label is None) == (self.text is None):
            given = "both are null" if self.label is None else f"{self.label!r} and text: {self.text!r}"
            raise ConfigError(f"task.source.label: {given}; allowed: one of label and text, the other one null")

    def load(self) -> TaskData:
        """Returns `file`, `audio`, and `label` or `text`, of train and validation. Raises `ConfigError`."""
        return encoded_files.load(self._paths, self._columns, self.holdout)

    def identity(self) -> dict[str, str]:
        """Returns the hash of each split's sounds and of what is beside them, in their order."""
        return encoded_files.identity(self._paths, self._columns)

    @property
    def _paths(self) -> dict[str, str | None]:
        return {"train": self.train_path, "validation": self.validation_path}

    @property
    def _columns(self) -> encoded_files.Columns:
        if self.text is None:
            return columns(self.audio, self.label)
        return encoded_files.Columns("sound", "audio", "text", (self.audio, self.text), decoded)


def columns(audio: str, label: str | None) -> encoded_files.Columns:
    """Returns the columns of sounds and their classes, with their names in a table."""
    return encoded_files.Columns("sound", "audio", "label", (audio, label), decoded)
