"""Checks the examples of a task and makes `TaskData` of plain columns."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.data.sources.split import digest
from trainer.data.sources.types import Split, TaskData
from trainer.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass
class Examples:
    """The columns of one split, all of the same length; `text_pair` is None unless the task has pairs of texts."""

    id: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    text_pair: list[str] | None = None
    label: list[Any] = field(default_factory=list)  # class ids, or numbers


def texts(values: Sequence[Any], where: str, *, empty: bool = False) -> list[str]:
    """Returns `values` unchanged if all are strings; empty strings are allowed only if `empty`.

    `where` names the column and its file. Raises `ConfigError` with the row, counted from 1.
    """
    for row, value in enumerate(values, 1):
        if value is None or (not empty and isinstance(value, str) and not value.strip()):
            raise ConfigError(f"{where}: row {row} is empty; allowed: a text in every row")
        if not isinstance(value, str):
            raise ConfigError(f"{where}: row {row} is {value!r}; allowed: a text in every row")
        refuse_halves(value, f"{where}: row {row}")
    return list(values)


def refuse_halves(text: str, where: str) -> None:
    """Raises `ConfigError` for half a character (a lone surrogate), which files and tokenizers can't encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where} has half a character, {text[error.start]!r}; allowed: whole characters") from None


def numbers(values: Sequence[Any], where: str) -> list[float]:
    """Returns `values` as floats if all are finite. Raises `ConfigError` with the row, counted from 1."""
    result = []
    for row, value in enumerate(values, 1):
        try:
            number = math.nan if value is None or isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ConfigError(f"{where}: row {row} is {value!r}; allowed for a regression: a finite number")
        result.append(number)
    return result


def ids(text: list[str], pair: list[str] | None) -> list[str]:
    """Derives ids from the texts, so that reordered rows keep their ids; repeated texts get a number."""
    seen: Counter[str] = Counter()
    result = []
    for row, first in enumerate(text):
        key = digest(first)[:16] if pair is None else digest(first, pair[row])[:16]
        seen[key] += 1
        result.append(key if seen[key] == 1 else f"{key}-{seen[key]}")
    return result


def class_ids(values: Sequence[Any], classes: int, where: str) -> list[int]:
    """Returns `values` unchanged if all are class ids. Raises `ConfigError` with the row, counted from 1."""
    for row, value in enumerate(values, 1):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < classes:
            raise ConfigError(f"{where}: row {row} is {value!r}; allowed: a class id, 0 to {classes - 1}")
    return list(values)


def task_data(splits: Mapping[str, Examples], labels: Sequence[str] | None, where: str) -> TaskData:
    """Makes the `TaskData` of these splits, train first. `labels`: class names, or None for a regression.

    Raises `ConfigError`, beginning with `where`, for an empty split, for labels that are all the same, and for a class
    that is evaluated but never trained. Logs a warning if evaluation examples are in train.
    """
    for name, examples in splits.items():
        if not examples.id:
            raise ConfigError(f"{where}: split {name} is empty; allowed: one or more examples in every split")
        repeated = [key for key, count in Counter(examples.id).items() if count > 1]
        if repeated:
            raise ConfigError(f"{where}: split {name} has the id {repeated[0]!r} more than once")
    for name, count in _in_train(splits).items():
        noun = "texts" if splits[name].text_pair is None else "pairs of texts"
        log.warning("%s: %d %s of %s are also in train", where, count, noun, name)
    trained = set(splits["train"].label)
    if labels is not None:
        if len(trained) < 2:
            only = labels[int(next(iter(trained)))]
            raise ConfigError(f"{where}: all of train has the label {only!r}; allowed: two or more classes")
        for name, examples in splits.items():
            unseen = sorted(set(examples.label) - trained)
            if unseen:
                listing = ", ".join(repr(labels[int(label)]) for label in unseen)
                allowed = ", ".join(repr(labels[int(label)]) for label in sorted(trained)[:20])
                raise ConfigError(f"{where}: {name} has labels that train lacks: {listing}; allowed: {allowed}")
    elif len(trained) < 2:
        raise ConfigError(f"{where}: all of train has the label {next(iter(trained))}; allowed: two or more values")
    return TaskData({name: dataset(examples, labels) for name, examples in splits.items()}, _tuple(labels))


def _in_train(splits: Mapping[str, Examples]) -> dict[str, int]:
    """Counts by split the evaluation examples that are also in train, ignoring case and white space.

    Splits without such examples are omitted.
    """

    def keys(examples: Examples) -> Iterator[str]:
        columns = [examples.text] if examples.text_pair is None else [examples.text, examples.text_pair]
        return (digest(*texts) for texts in zip(*columns, strict=True))

    evaluated = {name: list(keys(examples)) for name, examples in splits.items() if name != "train"}
    known = set().union(*evaluated.values()).intersection(keys(splits["train"]))
    counts = {name: sum(key in known for key in own) for name, own in evaluated.items()}
    return {name: count for name, count in counts.items() if count}


def _tuple(labels: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if labels is None else tuple(labels)


def dataset(examples: Examples, labels: Sequence[str] | None) -> Split:
    """Makes a `Split` with the columns that `TaskData` describes."""
    columns: dict[str, list[Any]] = {"id": examples.id, "text": examples.text}
    if examples.text_pair is not None:
        columns["text_pair"] = examples.text_pair
    columns["label"] = [float(label) if labels is None else int(label) for label in examples.label]
    return Split(columns)
