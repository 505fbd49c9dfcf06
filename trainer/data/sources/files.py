"""The user's own texts: a table for training, and a table or a held-out fraction for validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainer.data.sources import language_files
from trainer.data.sources.checks import Examples, ids, numbers, task_data, texts
from trainer.data.sources.classes import check_names, class_names, class_order
from trainer.data.sources.paths import expanded
from trainer.data.sources.readers import read_columns
from trainer.data.sources.split import held_out, refuse_empty
from trainer.data.sources.types import TaskData
from trainer.errors import ConfigError
from trainer.hashing import sha256

KINDS = ("classification", "regression")


@dataclass(frozen=True)
class Files:
    """A task from tables (.csv, .tsv, .jsonl, .parquet) with a header or named columns.

    train_path, validation_path: the files. Without a validation file, a hash of `text` holds out the fraction `holdout`
    of the training texts, so that a text with several rows, such as a premise with several hypotheses, is on one side.
    text, text_pair, label: the columns; text_pair is null if there is one text. kind: regression, or classification,
    whose classes are the labels that occur in train. Other kinds of task have other columns, see
    `language_files.FORMS`; or text alone, with label null. pandas names columns without a name 0, 1, …, and Hydra reads
    such a name as a number.
    """

    train_path: str
    validation_path: str | None = None
    text: str | int = "text"
    text_pair: str | int | None = None
    label: str | int | None = "label"
    kind: str = "classification"
    holdout: float = 0.1
    prompt: str | None = None
    response: str | None = None
    choices: str | None = None
    messages: str | None = None
    source: str | None = None
    target: str | None = None
    tokens: str | None = None
    tags: str | None = None
    context: str | None = None
    question: str | None = None
    answers: str | None = None

    def __post_init__(self) -> None:
        if self.train_path == "???":
            raise ConfigError("task.source.train_path: not given; allowed: a .csv, .tsv, .jsonl or .parquet file")
        for name in ("text", "text_pair", "label"):
            column = getattr(self, name)
            if type(column) not in (str, int) and not (column is None and name in ("text_pair", "label")):
                raise ConfigError(f"task.source.{name}: {column!r}; allowed: a column's name, in quotes if need be")
        if self.kind not in KINDS:
            raise ConfigError(f"task.source.kind: {self.kind!r}; allowed: {', '.join(KINDS)}")
        if not 0 < self.holdout < 1:
            raise ConfigError(f"task.source.holdout: {self.holdout}; allowed: above 0 and below 1")
        if self._of_other_kind:
            language_files.form(self._named)
            return
        columns = self._columns()
        if len(set(columns)) != len(columns):
            raise ConfigError(
                f"task.source: text, text_pair and label are {', '.join(map(repr, columns))}; allowed: different"
                " columns"
            )

    def load(self) -> TaskData:
        """Returns the splits "train" and "validation". Raises `ConfigError`."""
        where = "task.source"
        if self._of_other_kind:
            paths = {name: expanded(path) for name, path in self._paths().items()}
            return language_files.load(paths, self._named, self.holdout)
        tables = {name: self._read(f"{where}.{name}_path", path) for name, path in self._paths().items()}
        if self.validation_path is None:
            tables = self._split(tables["train"])
        if self.kind == "regression":
            return task_data(tables, None, where)
        classes = class_order(label for table in tables.values() for label in table.label)
        check_names(classes, where)
        numbered = {name: number for number, name in enumerate(classes)}
        for table in tables.values():
            table.label = [numbered[label] for label in table.label]
        return task_data(tables, classes, where)

    def identity(self) -> dict[str, str]:
        """Returns the hash of each file's content by split."""
        result = {}
        for name, path in self._paths().items():
            try:
                result[name] = sha256(expanded(path))
            except OSError as error:
                reason = error.strerror or error
                raise ConfigError(f"task.source.{name}_path: {path!r} can't be read: {reason}") from None
        return result

    def _paths(self) -> dict[str, str]:
        paths = {"train": self.train_path, "validation": self.validation_path}
        return {name: path for name, path in paths.items() if path is not None}

    @property
    def _named(self) -> dict[str, str]:
        """The column names that are given, by field."""
        return {name: str(column) for name in language_files.NAMES if (column := getattr(self, name)) is not None}

    @property
    def _of_other_kind(self) -> bool:
        """Whether the rows are for another kind of task than a class or a number for each text."""
        return self.label is None or not {*self._named} <= {"text", "label"}

    def _columns(self) -> list[str]:
        """Returns the names of the columns of the text, of the second text if there is one, and of the label."""
        return [str(name) for name in (self.text, self.text_pair, self.label) if name is not None]

    def _read(self, field: str, path: str) -> Examples:
        columns = self._columns()
        table = read_columns(expanded(path), columns, field)
        if not table[columns[0]]:
            raise ConfigError(f"{field}: {path!r} has no rows; allowed: one or more")
        where = f"{field}: {path!r}, column"
        text, *second = (texts(table[name], f"{where} {name!r}") for name in columns[:-1])
        pair = second[0] if second else None
        label: list[Any] = table[columns[-1]]
        if self.kind == "regression":
            label = numbers(label, f"{where} {columns[-1]!r}")
        else:
            label = class_names(label, f"{where} {columns[-1]!r}")
        return Examples(id=ids(text, pair), text=text, text_pair=pair, label=label)

    def _split(self, table: Examples) -> dict[str, Examples]:
        splits: dict[str, list[int]] = {"train": [], "validation": []}
        for row, text in enumerate(table.text):
            splits["validation" if held_out(text, self.holdout) else "train"].append(row)
        refuse_empty(splits, table.text, self.holdout)
        return {
            name: Examples(
                id=[table.id[row] for row in rows],
                text=[table.text[row] for row in rows],
                text_pair=None if table.text_pair is None else [table.text_pair[row] for row in rows],
                label=[table.label[row] for row in rows],
            )
            for name, rows in splits.items()
        }
