"""What every source gives, whatever it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class TaskData:
    """The examples of a task.

    `splits` has "train" and one or more evaluation splits, in the order in which they are
    reported; the first one decides. It is "validation", and for MNLI "validation_matched",
    then "validation_mismatched". Every split has the columns

    - `id`: string, unique within the task and the same in every run,
    - `text`: string, and in tasks on pairs `text_pair`: string,
    - `label`: int64, an index into `labels`, or float64 for a regression;

    those beside `id` in a classification or a regression of texts, for other kinds see `columns`.

    `labels` are the class names in the order of their ids; None for a regression, and where there are no classes.
    """

    splits: dict[str, Dataset]
    labels: tuple[str, ...] | None


class TaskSource(Protocol):
    def load(self) -> TaskData:
        """The task's examples. Raises `ConfigError`."""
        ...

    def identity(self) -> dict[str, str]:
        """What of the content must enter a run's hash because the config doesn't pin it.

        Nothing for a pinned source; hashes, never paths, for the user's own files.
        """
        ...


class ModelSource(Protocol):
    def fetch(self) -> Path:
        """A local folder with config.json, tokenizer files and weights. Raises `ConfigError`."""
        ...

    def identity(self) -> dict[str, str]:
        """As for a `TaskSource`."""
        ...
