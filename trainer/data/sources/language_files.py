"""The user's own tables for the kinds of task that are no classification of texts; see `columns` for what they have."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.data.sources.checks import ids, refuse_halves, texts
from trainer.data.sources.classes import check_names, class_names, class_order
from trainer.data.sources.columns import Row, hold_out, rows_data
from trainer.data.sources.readers import read_columns
from trainer.data.sources.types import TaskData
from trainer.errors import ConfigError

log = logging.getLogger(__name__)


# The columns of rows, label and text where they are named beside others apart.
FORMS: tuple[tuple[str, ...], ...] = (
    ("messages",),
    ("prompt", "response"),
    ("prompt", "choices", "label"),
    ("source", "target"),
    ("tokens", "tags"),
    ("context", "question", "answers"),
    ("text",),
)
NAMES = tuple(dict.fromkeys(name for columns in FORMS for name in columns))


def form(columns: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the columns of the rows, given the named columns. Raises `ConfigError` for names that don't combine."""
    given = {*columns} - {"text", "label"}
    for found in FORMS:
        if given == {*found} - {"text", "label"} and (given or "label" not in columns) and {*found} <= {*columns}:
            return found
    named = ", ".join(name for name in NAMES if name in given)
    raise ConfigError(
        f"task.source: columns for {named}; allowed: {'; '.join(map(', '.join, FORMS[:-1]))}; "
        "or text alone, with label: null"
    )


def load(files: Mapping[str, Path], columns: Mapping[str, str], holdout: float) -> TaskData:
    """Reads `files` by split; if train is the only one, the fraction `holdout` of it is held out.

    columns: names in the files. Raises `ConfigError`.
    """
    wanted = form(columns)
    splits = {name: _rows(path, f"task.source.{name}_path", wanted, columns) for name, path in files.items()}
    if len(splits) == 1:
        splits = hold_out(((_key(row), row) for row in splits["train"]), holdout)
    rows, where = with_ids(splits), "task.source"
    return _numbered(rows, where) if "tags" in wanted else rows_data(rows, where)


def _numbered(splits: Mapping[str, Sequence[Row]], where: str) -> TaskData:
    """Replaces the names of tags by numbers. Warns of tags that are evaluated and not trained."""
    tags = {name: {tag for row in rows for tag in row["tags"]} for name, rows in splits.items()}
    names = class_order(tag for found in tags.values() for tag in found)
    check_names(names, where)
    if unseen := sorted(set(names) - tags["train"]):
        log.warning("%s: no row of train has the tags %s", where, ", ".join(map(repr, unseen)))
    numbers = {name: number for number, name in enumerate(names)}
    return rows_data(
        {
            name: [{**row, "tags": [numbers[tag] for tag in row["tags"]]} for row in rows]
            for name, rows in splits.items()
        },
        where,
        names,
    )


def _rows(path: Path, field: str, wanted: Sequence[str], columns: Mapping[str, str]) -> list[Row]:
    table = read_columns(path, [columns[name] for name in wanted], field)
    checked: dict[str, list[Any]] = {}
    for name in wanted:
        where = f"{field}: {str(path)!r}, column {columns[name]!r}"
        checked[name] = CHECKED[name](table[columns[name]], where)
    return [dict(zip(checked, values, strict=True)) for values in zip(*checked.values(), strict=True)]


def _key(row: Row) -> str:
    """Returns the text that must not be on both sides of a split."""
    if "messages" in row:
        return "\n".join(str(message["content"]) for message in row["messages"][:-1])
    if "tokens" in row:
        return " ".join(row["tokens"])
    return str(next(row[name] for name in ("prompt", "source", "context", "text") if name in row))


def with_ids(splits: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
    """Adds ids derived from the rows' content; a row that an earlier split has too gets its split's name in front."""
    result: dict[str, list[Row]] = {}
    seen: set[str] = set()
    for name, rows in splits.items():
        keys = ids([json.dumps(row, sort_keys=True, ensure_ascii=False) for row in rows], None)
        result[name] = [
            {"id": f"{name}-{key}" if key in seen else key, **row} for key, row in zip(keys, rows, strict=True)
        ]
        seen.update(keys)
    return result


def _messages(values: Sequence[Any], where: str) -> list[Any]:
    conversations = []
    for row, value in enumerate(_lists(values, where, "a list of {role, content}"), 1):
        if not all(isinstance(message, Mapping) and isinstance(message.get("content"), str) for message in value):
            raise ConfigError(f"{where}: row {row} is {str(value)[:60]!r}; allowed: a list of {{role, content}}")
        conversations.append(
            [{"role": str(message.get("role") or ""), "content": message["content"]} for message in value]
        )
    return conversations


def _list_of_texts(values: Sequence[Any], where: str) -> list[Any]:
    lists = _lists(values, where, "a list of texts")
    for row, value in enumerate(lists, 1):
        if not all(isinstance(text, str) for text in value):
            raise ConfigError(f"{where}: row {row} is {str(value)[:60]!r}; allowed: a list of texts")
    return lists


def _tags(values: Sequence[Any], where: str) -> list[Any]:
    allowed = "a list with the tag of each word"
    return [class_names(value, f"{where}: row {row}") for row, value in enumerate(_lists(values, where, allowed), 1)]


def _answers(values: Sequence[Any], where: str) -> list[Any]:
    """The answers of each row, in a table of texts written as JSON; SQuAD calls `start` `answer_start`."""
    found = []
    for row, value in enumerate(values, 1):
        read = _json(value)
        texts, starts = (
            (read.get("text"), read.get("start", read.get("answer_start"))) if isinstance(read, Mapping) else (0, 0)
        )
        if not (
            isinstance(texts, list)
            and isinstance(starts, list)
            and len(texts) == len(starts)
            and all(isinstance(text, str) for text in texts)
            and all(isinstance(start, int) and not isinstance(start, bool) for start in starts)
        ):
            raise ConfigError(
                f"{where}: row {row} is {str(value)[:60]!r}; allowed: {{text: […], start: […]}}, texts of the context "
                "and the numbers of their first characters, from 0; none where it has no answer"
            )
        refuse_halves("".join(texts), f"{where}: row {row}")
        found.append({"text": texts, "start": starts})
    return found


def _lists(values: Sequence[Any], where: str, allowed: str) -> list[list[Any]]:
    """Returns `values` as lists; strings are parsed as JSON. Raises `ConfigError` with the row, counted from 1."""
    lists = []
    for row, value in enumerate(values, 1):
        parsed = _json(value)
        if not isinstance(parsed, list):
            raise ConfigError(f"{where}: row {row} is {str(value)[:60]!r}; allowed: {allowed}")
        refuse_halves(json.dumps(parsed, ensure_ascii=False), f"{where}: row {row}")
        lists.append(parsed)
    return lists


def _json(value: Any) -> Any:
    """What a text says as JSON, None where it says nothing; anything else as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return None


def _numbers(values: Sequence[Any], where: str) -> list[int]:
    numbers = []
    for row, value in enumerate(values, 1):
        if isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{where}: row {row} is {value!r}; allowed: the number of the right choice, from 0")
        numbers.append(value)
    return numbers


CHECKED: dict[str, Callable[[Sequence[Any], str], list[Any]]] = {
    "text": texts,
    "prompt": texts,
    "response": texts,
    "messages": _messages,
    "choices": _list_of_texts,
    "label": _numbers,
    "source": texts,
    "target": texts,
    "tokens": _list_of_texts,
    "tags": _tags,
    "context": texts,
    "question": texts,
    "answers": _answers,
}
