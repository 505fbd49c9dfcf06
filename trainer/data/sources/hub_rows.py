"""Data sets of the Hugging Face Hub, whose fields templates map to the columns of a kind of task.

The Hub converts every public data set to parquet on the branch refs/convert/parquet, in folders by configuration and
split. So one reader is enough, and no code of a data set is run.

A template is a text with fields in braces, as in "Question: {question}\\nAnswer:". A template that is a single field,
as "{label}", yields the field's value unchanged: a number, a list or an image's bytes. "{translation.en}" is a nested
field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.data.sources.checks import class_ids, texts
from trainer.data.sources.columns import COLUMNS, TEXTS, Row, rows_data, split_by_text
from trainer.data.sources.glue import read_parquet
from trainer.data.sources.hub import Repository
from trainer.data.sources.types import TaskData
from trainer.errors import ConfigError

PARQUET = "refs/convert/parquet"
_FIELD = re.compile(r"\{([\w-]+(?:\.[\w-]+)*)\}")
_PART = {"repo": None, "config": "default", "split": "train", "revision": PARQUET, "columns": None}


@dataclass(frozen=True)
class HubRows:
    """train, validation: the location of the rows: `repo`, and optionally `config` (default), `split` (train),
    `revision` (a commit or branch with the layout of the parquet branch), and `columns` of its own. Without validation,
    a hash of the first column holds out the fraction `holdout` of train.

    columns: the task's columns, as templates or lists or mappings of templates. where_empty: by field, the templates
    that replace those of `columns` in rows whose field is empty. labels: class names by class id; without them the
    classes of an image data set are named 0, 1, ….
    """

    train: Mapping[str, Any]
    columns: Mapping[str, Any]
    validation: Mapping[str, Any] | None = None
    where_empty: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    labels: Sequence[str] | None = None
    holdout: float = 0.1

    def __post_init__(self) -> None:
        for name, part in self._parts.items():
            for key in part:
                if key not in _PART:
                    raise ConfigError(f"task.source.{name}.{key}: no such field, allowed: {', '.join(_PART)}")
            if not isinstance(part.get("repo"), str) or part["repo"] == "???":
                raise ConfigError(f"task.source.{name}.repo: not given; allowed: an id of the Hub, like openai/gsm8k")
            for column in self._columns(part):
                if column not in COLUMNS:
                    raise ConfigError(f"task.source.columns.{column}: no such column, allowed: {', '.join(COLUMNS)}")
        for name, others in self.where_empty.items():
            if unknown := sorted(set(others) - set(self.columns)):
                allowed = ", ".join(self.columns)
                raise ConfigError(f"task.source.where_empty.{name}.{unknown[0]}: no such column, allowed: {allowed}")
        if not 0 < self.holdout < 1:
            raise ConfigError(f"task.source.holdout: {self.holdout}; allowed: above 0 and below 1")

    def load(self) -> TaskData:
        """Returns the splits train and validation. Raises `ConfigError`."""
        splits: dict[str, list[Row]] = {name: list(self._rows(name, part)) for name, part in self._parts.items()}
        if self.validation is None:
            first = next(iter(self._columns(self.train)))
            splits = split_by_text(((str(row[first]), row) for row in splits["train"]), self.holdout)
        labels = self.labels
        if "label" in self.columns and "choices" not in self.columns:
            numbers = [row["label"] for rows in splits.values() for row in rows]
            if labels is None:
                labels = [
                    str(number) for number in range(1 + max((n for n in numbers if isinstance(n, int)), default=0))
                ]
            class_ids(numbers, len(labels), "task.source.columns.label")
        return rows_data(splits, "task.source", labels)

    def identity(self) -> dict[str, str]:
        """Returns the current commit of each branch; nothing for a commit, which the config has."""
        parts = {name: part for name, part in self._parts.items() if not _repository(part).pinned}
        return {f"{name} commit": _folder(part).name for name, part in parts.items()}

    @property
    def _parts(self) -> dict[str, Mapping[str, Any]]:
        parts = {"train": self.train, "validation": self.validation}
        return {name: part for name, part in parts.items() if part is not None}

    def _columns(self, part: Mapping[str, Any]) -> Mapping[str, Any]:
        return part.get("columns") or self.columns

    def _rows(self, name: str, part: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        templates = self._columns(part)
        where = f"{_repository(part)}: {_prefix(part)}"
        fields = list(dict.fromkeys([*_fields(templates), *self.where_empty, *_fields(self.where_empty)]))
        table = read_parquet(_files(_folder(part), part), [*dict.fromkeys(f.partition(".")[0] for f in fields)], where)
        for number, row in enumerate(table.to_pylist(), 1):
            row_templates = dict(templates)
            for empty, others in self.where_empty.items():
                if not row[empty]:
                    row_templates |= others
            at = f"{where}: row {number}"
            values = {column: _filled(template, row, at) for column, template in row_templates.items()}
            for column in TEXTS & values.keys():
                texts([values[column]], f"{at}, column {column}")
            yield {"id": f"{name}-{number}", **values}


def _repository(part: Mapping[str, Any]) -> Repository:
    revision = part.get("revision") or PARQUET
    return Repository(part["repo"], revision, "dataset", "task=file with your own texts, a task from the package index")


def _prefix(part: Mapping[str, Any]) -> str:
    return f"{part.get('config', _PART['config'])}/{part.get('split', _PART['split'])}"


def _folder(part: Mapping[str, Any]) -> Path:
    prefix = _prefix(part)

    def wanted(names: Iterable[str]) -> list[str]:
        return sorted(name for name in names if name.startswith(f"{prefix}/") and name.endswith(".parquet"))

    def problem(folder: Path) -> str | None:
        return None if _files(folder, part) else f"has no {prefix}/*.parquet"

    return _repository(part).snapshot(f"{prefix}/0000.parquet", wanted, problem)


def _files(folder: Path, part: Mapping[str, Any]) -> list[Path]:
    return sorted((folder / _prefix(part)).glob("*.parquet"))


def _fields(template: Any) -> Iterator[str]:
    if isinstance(template, str):
        yield from _FIELD.findall(template)
    elif isinstance(template, Mapping | list | tuple):
        for part in template.values() if isinstance(template, Mapping) else template:
            yield from _fields(part)


def _filled(template: Any, row: Mapping[str, Any], where: str) -> Any:
    if isinstance(template, Mapping):
        return {name: _filled(part, row, where) for name, part in template.items()}
    if not isinstance(template, str):
        return [_filled(part, row, where) for part in template]
    if single := _FIELD.fullmatch(template):
        return _value(row, single[1], where)
    return _FIELD.sub(lambda match: str(_value(row, match[1], where)), template)


def _value(row: Mapping[str, Any], name: str, where: str) -> Any:
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or value.get(part) is None:
            raise ConfigError(f"{where} has no {name}; allowed: a value in every row")
        value = value[part]
    return value
