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
    """Which columns rows have, by what is named. Raises `ConfigError` for names that don't belong together."""
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
    """The rows of `files` by split; of train alone the share `holdout` is held out. columns: names in the files."""
    wanted = form(columns)
    splits = {name: _rows(path, f"task.source.{name}_path", wanted, columns) for name, path in files.items()}
    if len(splits) == 1:
        splits = split_by_text(((_key(row), row) for row in splits["train"]), holdout)
        if empty := [name for name, rows in splits.items() if not rows]:
            raise ConfigError(f"task.source.holdout: {holdout} leaves none for {empty[0]}; allowed: another share")
    return rows_data(_told_apart(splits), "task.source")


def _rows(path: Path, field: str, wanted: Sequence[str], columns: Mapping[str, str]) -> list[Row]:
    table = read_columns(path, [columns[name] for name in wanted], field)
    found: dict[str, list[Any]] = {}
    for name in wanted:
        where = f"{field}: {str(path)!r}, column {columns[name]!r}"
        found[name] = _READ[name](table[columns[name]], where)
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


def _key(row: Row) -> str:
    """What must not be on both sides of a split."""
    if "messages" in row:
        return "\n".join(str(message["content"]) for message in row["messages"][:-1])
    return str(row.get("prompt", row.get("text")))


def _told_apart(splits: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
    """The rows with ids from what is in them; the same in two splits are told apart by the split."""
    found: dict[str, list[Row]] = {}
    seen: set[str] = set()
    for name, rows in splits.items():
        own = ids([json.dumps(row, sort_keys=True, ensure_ascii=False) for row in rows], None)
        found[name] = [
            {"id": f"{name}-{one}" if one in seen else one, **row} for one, row in zip(own, rows, strict=True)
        ]
        seen.update(own)
    return found


def _messages(values: Sequence[Any], where: str) -> list[Any]:
    found = []
    for row, value in enumerate(_lists(values, where, "a list of {role, content}"), 1):
        if not all(isinstance(one, Mapping) and isinstance(one.get("content"), str) for one in value):
            raise ConfigError(f"{where}: row {row} is {str(value)[:60]!r}; allowed: a list of {{role, content}}")
        found.append([{"role": str(one.get("role") or ""), "content": one["content"]} for one in value])
    return found


def _choices(values: Sequence[Any], where: str) -> list[Any]:
    found = _lists(values, where, "a list of texts")
    for row, value in enumerate(found, 1):
        if not all(isinstance(one, str) for one in value):
            raise ConfigError(f"{where}: row {row} is {str(value)[:60]!r}; allowed: a list of texts")
    return found


def _lists(values: Sequence[Any], where: str, allowed: str) -> list[list[Any]]:
    """Lists, in a table of texts those that are written as JSON."""
    found = []
    for row, value in enumerate(values, 1):
        try:
            read = json.loads(value) if isinstance(value, str) else value
        except ValueError:
            read = None
        if not isinstance(read, list):
            raise ConfigError(f"{where}: row {row} is {str(value)[:60]!r}; allowed: {allowed}")
        refuse_halves(json.dumps(read, ensure_ascii=False), f"{where}: row {row}")
        found.append(read)
    return found


def _numbers(values: Sequence[Any], where: str) -> list[int]:
    found = []
    for row, value in enumerate(values, 1):
        if isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{where}: row {row} is {value!r}; allowed: the number of the right choice, from 0")
        found.append(value)
    return found


_READ: dict[str, Callable[[Sequence[Any], str], list[Any]]] = {
    "text": texts,
    "prompt": texts,
    "response": texts,
    "messages": _messages,
    "choices": _choices,
    "label": _numbers,
}
