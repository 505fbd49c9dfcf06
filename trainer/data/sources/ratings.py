"""The user's own ratings: a table of users, items and ratings."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.data.sources.checks import ids, numbers
from trainer.data.sources.classes import class_names
from trainer.data.sources.columns import Row, hold_out, rows_data
from trainer.data.sources.paths import expanded
from trainer.data.sources.readers import read_columns
from trainer.data.sources.types import TaskData
from trainer.errors import ConfigError
from trainer.hashing import sha256

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ratings:
    """A task from tables (.csv, .tsv, .jsonl, .parquet) with a row for each rating.

    user, item, rating: the columns. Without a validation path the share `holdout` of the ratings is held out, by a hash
    of user and item. A user rates an item once in a table.
    """

    train_path: str
    validation_path: str | None = None
    user: str = "user"
    item: str = "item"
    rating: str = "rating"
    holdout: float = 0.1

    def __post_init__(self) -> None:
        if self.train_path == "???":
            raise ConfigError("task.source.train_path: not given; allowed: a .csv, .tsv, .jsonl or .parquet file")
        if not 0 < self.holdout < 1:
            raise ConfigError(f"task.source.holdout: {self.holdout}; allowed: above 0 and below 1")

    def load(self) -> TaskData:
        """Returns `user`, `item` and `rating` of train and validation. Raises `ConfigError`, which names a row."""
        splits: dict[str, list[Row]] = {name: self._rows(name, path) for name, path in self._paths.items()}
        if len(splits) == 1:
            splits = hold_out(((_pair(row), row) for row in splits["train"]), self.holdout)
        trained = {(row["user"], row["item"]) for row in splits["train"]}
        if known := sum((row["user"], row["item"]) in trained for row in splits["validation"]):
            log.warning("task.source: %d ratings of validation are of a user and an item that train has", known)
        own = iter(ids([f"{name} {_pair(row)}" for name, rows in splits.items() for row in rows], None))
        return rows_data(
            {name: [{"id": next(own), **row} for row in rows] for name, rows in splits.items()}, "task.source"
        )

    def identity(self) -> dict[str, str]:
        """Returns the hash of each table."""
        found = {}
        for name, path in self._paths.items():
            try:
                found[name] = sha256(expanded(path))
            except OSError as error:
                raise ConfigError(f"task.source.{name}_path: {path!r} can't be read: {error.strerror}") from None
        return found

    @property
    def _paths(self) -> dict[str, str]:
        paths = {"train": self.train_path, "validation": self.validation_path}
        return {name: path for name, path in paths.items() if path is not None}

    def _rows(self, split: str, path: str) -> list[Row]:
        field = f"task.source.{split}_path"
        users, items, rated = columns(path, (self.user, self.item, self.rating), field)
        where = f"{field}: {path!r}"
        seen: dict[tuple[str, str], int] = {}
        for row, pair in enumerate(zip(users, items, strict=True), 1):
            if (first := seen.setdefault(pair, row)) != row:
                raise ConfigError(
                    f"{where}: row {row} has the user {pair[0]!r} and the item {pair[1]!r} of row {first}; "
                    "allowed: once"
                )
        values = numbers(rated, f"{where}, column {self.rating!r}")
        return [
            {"user": user, "item": item, "rating": value}
            for user, item, value in zip(users, items, values, strict=True)
        ]


def columns(path: str, names: Sequence[str], field: str) -> tuple[list[str], ...]:
    """Returns columns of a table; of the first two, users and items, numbers as texts. Raises `ConfigError`."""
    table, where = read_columns(expanded(path), names, field), f"{field}: {path!r}"
    if not table[names[0]]:
        raise ConfigError(f"{where} has no rows; allowed: one or more")
    named = [class_names(table[name], f"{where}, column {name!r}") for name in names[:2]]
    return (*named, *(table[name] for name in names[2:]))


def _pair(row: Row) -> str:
    return f"{row['user']}\0{row['item']}"
