"""What every source gives, whatever it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, overload


@dataclass(frozen=True)
class Split:
    """The rows of one split by column: lists of one length. It reads like a `datasets.Dataset`, which fits too."""

    columns: Mapping[str, list[Any]]

    @property
    def column_names(self) -> list[str]:
        return list(self.columns)

    def __len__(self) -> int:
        return len(self.columns["id"])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[row] for row in range(len(self)))

    @overload
    def __getitem__(self, key: str) -> list[Any]: ...
    @overload
    def __getitem__(self, key: int) -> dict[str, Any]: ...
    def __getitem__(self, key: str | int) -> list[Any] | dict[str, Any]:
        """The column of this name, or the row of this number."""
        if isinstance(key, str):
            return self.columns[key]
        return {name: column[key] for name, column in self.columns.items()}

    def select(self, rows: Iterable[int]) -> Split:
        """The rows of these numbers, in their order."""
        numbers = list(rows)
        return Split({name: [column[row] for row in numbers] for name, column in self.columns.items()})


@dataclass(frozen=True)
class TaskData:
    """The examples of a task.

    `splits` has "train" and one or more evaluation splits, in the order in which they are
    reported; the first one decides. It is "validation", and for MNLI "validation_matched",
    then "validation_mismatched". Every split has the columns

    - `id`: string, unique within the task and the same in every run,
    - `text`: string, and in tasks on pairs `text_pair`: string,
    - `label`: int, an index into `labels`, or float for a regression.

    `labels` are the class names in the order of their ids; None for a regression.
    """

    splits: dict[str, Split]
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
