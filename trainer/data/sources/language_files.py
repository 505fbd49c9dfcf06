"""The user's own tables for language models: texts, prompts and responses, conversations, choices."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.data.sources.checks import ids, refuse_halves, texts
from trainer.data.sources.columns import Row, rows_data, split_by_text
from trainer.data.sources.readers import read_columns
from trainer.data.sources.types import TaskData
from trainer.errors import ConfigError


def form(columns: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the columns of the rows, given the named columns. Raises `ConfigError` for names that don't combine."""
    given = {*columns} - {"text", "label"}
    if given == {"messages"}:
        return ("messages",)
    if given == {"prompt", "choices"} and "label" in columns:
        return ("prompt", "choices", "label")
    if given == {"prompt", "response"}:
        return ("prompt", "response")
    if not given and "label" not in columns:
        return ("text",)
    named = ", ".join(sorted(given))
    raise ConfigError(
        f"task.source: columns for {named}; allowed: messages; prompt, response; prompt, choices, label; "
        "or text alone, with label: null"
    )


def load(files: Mapping[str, Path], columns: Mapping[str, str], holdout: float) -> TaskData:
    """Reads `files` by split; if train is the only one, the fraction `holdout` of it is held out.

    columns: names in the files. Raises `ConfigError`.
    """
    wanted = form(columns)
    splits = {name: _rows(path, f"task.source.{name}_path", wanted, columns) for name, path in files.items()}
    if len(splits) == 1:
        splits = split_by_text(((_key(row), row) for row in splits["train"]), holdout)
        if empty := [name for name, rows in splits.items() if not rows]:
            raise ConfigError(f"task.source.holdout: {holdout} leaves none for {empty[0]}; allowed: another fraction")
    return rows_data(_with_ids(splits), "task.source")


def _rows(path: Path, field: str, wanted: Sequence[str], columns: Mapping[str, str]) -> list[Row]:
    table = read_columns(path, [columns[name] for name in wanted], field)
    checked: dict[str, list[Any]] = {}
    for name in wanted:
        where = f"{field}: {str(path)!r}, column {columns[name]!r}"
        checked[name] = _CHECKED[name](table[columns[name]], where)
    return [dict(zip(checked, values, strict=True)) for values in zip(*checked.values(), strict=True)]


def _key(row: Row) -> str:
    """Returns the text that must not be on both sides of a split."""
    if "messages" in row:
        return "\n".join(str(message["content"]) for message in row["messages"][:-1])
    return str(row.get("prompt", row.get("text")))


def _with_ids(splits: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
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


def _choices(values: Sequence[Any], where: str) -> list[Any]:
    choices = _lists(values, where, "a list of texts")
    for row, value in enumerate(choices, 1):
        if not all(isinstance(text, str) for text in value):
            raise ConfigError(f"{where}: row {row} is {str(value)[:60]!r}; allowed: a list of texts")
    return choices


def _lists(values: Sequence[Any], where: str, allowed: str) -> list[list[Any]]:
    """Returns `values` as lists; strings are parsed as JSON. Raises `ConfigError` with the row, counted from 1."""
    lists = []
    for row, value in enumerate(values, 1):
        try:
            parsed = json.loads(value) if isinstance(value, str) else value
        except ValueError:
            parsed = None
        if not isinstance(parsed, list):
            raise ConfigError(f"{where}: row {row} is {str(value)[:60]!r}; allowed: {allowed}")
        refuse_halves(json.dumps(parsed, ensure_ascii=False), f"{where}: row {row}")
        lists.append(parsed)
    return lists


def _numbers(values: Sequence[Any], where: str) -> list[int]:
    numbers = []
    for row, value in enumerate(values, 1):
        if isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{where}: row {row} is {value!r}; allowed: the number of the right choice, from 0")
        numbers.append(value)
    return numbers


_CHECKED: dict[str, Callable[[Sequence[Any], str], list[Any]]] = {
    "text": texts,
    "prompt": texts,
    "response": texts,
    "messages": _messages,
    "choices": _choices,
    "label": _numbers,
}
