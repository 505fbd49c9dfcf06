"""The types that every source of a task or a model provides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, overload


@dataclass(frozen=True)
class Split:
    """The rows of one split by column, lists of equal length. A `datasets.Dataset` can replace it."""

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
        """Returns a column by name, or a row by index."""
        if isinstance(key, str):
            return self.columns[key]
        return {name: column[key] for name, column in self.columns.items()}

    def select(self, rows: Iterable[int]) -> Split:
        """Returns the rows at these indices, in this order."""
        numbers = list(rows)
        return Split({name: [column[row] for row in numbers] for name, column in self.columns.items()})


@dataclass(frozen=True)
class TaskData:
    """The examples of a task.

    `splits` has "train" and one or more evaluation splits, in the order in which they are reported; the first
    evaluation split provides the run's metric. It is "validation", except for MNLI, which has "validation_matched" and
    "validation_mismatched". Every split has the column

    - `id`: string, unique within the task and the same in every run.

    Classification and regression of texts have the columns

    - `text`: string, and in tasks on pairs `text_pair`: string,
    - `label`: int, an index into `labels`, or float for a regression;

    see `columns` for other kinds of task.

    `labels` are the class names in the order of their class ids; None for a regression or a task without classes.
    `shares` are those of the tasks of a mixture in an epoch, by the name in the column `task`; None for one task.
    """

    splits: dict[str, Split]
    labels: tuple[str, ...] | None
    shares: Mapping[str, float] | None = None

    @property
    def column_names(self) -> list[str]:
        """The columns of the first split, which all have."""
        return next(iter(self.splits.values())).column_names


class TaskSource(Protocol):
    def load(self) -> TaskData:
        """Returns the task's examples. Raises `ConfigError`."""
        ...

    def identity(self) -> dict[str, str]:
        """Returns what a run's hash must include of the content because the config doesn't pin it.

        It is empty for a pinned source, and has hashes, never paths, for the user's own files.
        """
        ...


class ModelSource(Protocol):
    def fetch(self) -> Path:
        """Returns a local folder with config.json, tokenizer files and weights. Raises `ConfigError`."""
        ...

    def identity(self) -> dict[str, str]:
        """Returns what a run's hash must include, as for a `TaskSource`, if the config has no hashes of the files."""
        ...
