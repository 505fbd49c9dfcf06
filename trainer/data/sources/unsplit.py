"""A file of the user's own rows for predictions, of any kind of task but classes and numbers of texts.

Its columns are those of the run's rows (see `columns`). What is right may be missing: a stand-in is in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.data.sources import encoded_files, images, sounds
from trainer.data.sources.columns import Row, rows_data
from trainer.data.sources.language_files import CHECKED, with_ids
from trainer.data.sources.readers import column_names, read_columns
from trainer.data.sources.types import TaskData
from trainer.errors import ConfigError

SPLIT = "the file"  # in errors: row 3 of the file
FIELD = "--data"
FILES = {"image": images.columns, "audio": sounds.columns}  # by the column of encoded files
# By the column of what is right.
STAND_INS: dict[str, Any] = {
    "response": ".",
    "target": ".",
    "label": 0,
    "answers": {"text": [], "start": []},
    "tags": None,  # the first class for each word
}


def read(
    path: Path, columns: Sequence[str], named: Mapping[str, Any], labels: Sequence[str] | None, references: bool
) -> tuple[TaskData, bool]:
    """Returns the rows as the one split of a task, and whether it is known what is right.

    columns: of the run's rows. named: what the run's task calls them, where the file does not have them by their own
    names. labels: names of classes by id. references: whether columns of what is right are read. Raises `ConfigError`.
    """
    content = next((name for name in FILES if {name, "label"} <= {*columns}), None)
    if content is not None:
        rows, known = _files(path, content, named, labels, references)
    elif others := [name for name in columns if name not in CHECKED and name not in ("id", "task")]:
        raise ConfigError(
            f"predict: the run's task has rows of {', '.join(others)}; allowed: texts, or classes of files"
        )
    else:
        rows, known = _table(path, [name for name in columns if name not in ("id", "task")], named, labels, references)
    if not rows:
        raise ConfigError(f"{FIELD}: {str(path)!r} has no rows; allowed: one or more")
    return rows_data({SPLIT: rows} if "id" in rows[0] else with_ids({SPLIT: rows}), FIELD, labels), known


def _table(
    path: Path, columns: Sequence[str], named: Mapping[str, Any], labels: Sequence[str] | None, references: bool
) -> tuple[list[Row], bool]:
    there = column_names(path)
    places = {name: _place(name, named, there) for name in columns}
    right = [name for name in columns if name in STAND_INS]
    known = references and all(places[name] in there for name in right)
    wanted = [name for name in columns if known or name not in right]
    table = read_columns(path, [places[name] for name in wanted], FIELD)
    checked: dict[str, list[Any]] = {}
    for name in wanted:
        where = f"{FIELD}: {str(path)!r}, column {places[name]!r}"
        checked[name] = CHECKED[name](table[places[name]], where)
        if name == "tags":
            checked[name] = [_ids(tags, labels, f"{where}: row {row}") for row, tags in enumerate(checked[name], 1)]
    rows = [dict(zip(checked, values, strict=True)) for values in zip(*checked.values(), strict=True)]
    if "messages" in columns:
        return _conversations(rows, references)
    for row in rows if not known else []:
        row |= {name: [0] * len(row["tokens"]) if name == "tags" else STAND_INS[name] for name in right}
    return [{name: row[name] for name in columns} for row in rows], known


def _place(name: str, named: Mapping[str, Any], there: Sequence[str]) -> str:
    """The column of a file that has `name`."""
    given = named.get(name)
    return given if name not in there and isinstance(given, str) and given in there else name


def _ids(names: Sequence[str], labels: Sequence[str] | None, where: str) -> list[int]:
    known = {name: number for number, name in enumerate(labels or ())}
    for name in names:
        if name not in known:
            raise ConfigError(f"{where} is {name!r}; allowed: {', '.join(map(repr, known))}, or --label ''")
    return [known[name] for name in names]


def _conversations(rows: Sequence[Row], references: bool) -> tuple[list[Row], bool]:
    """Conversations whose last message is a response, known or a stand-in."""
    ended = [bool(row["messages"]) and row["messages"][-1]["role"] == "assistant" for row in rows]
    if any(ended) and not all(ended):
        row = ended.index(not ended[0]) + 1
        raise ConfigError(f"{FIELD}: row {row} ends in another role than row 1; allowed: all in assistant, or none")
    known = references and any(ended)
    cut = [row["messages"][:-1] if any(ended) else row["messages"] for row in rows]
    stand_in = {"role": "assistant", "content": STAND_INS["response"]}
    return list(rows) if known else [{"messages": [*messages, stand_in]} for messages in cut], known


def _files(
    path: Path, content: str, named: Mapping[str, Any], labels: Sequence[str] | None, references: bool
) -> tuple[list[Row], bool]:
    if path.is_dir():
        file, label = content, "label"
        known = references and any(one.is_dir() for one in encoded_files.visible(path))
    else:
        there = column_names(path)
        file, label = (_place(name, named, there) for name in (content, "label"))
        known = references and label in there
    rows = encoded_files.unsplit(path, FILES[content](file, label if known else None), FIELD)
    where = f"{FIELD}: {str(path)!r}"
    numbers = [_ids([row["label"]], labels, f"{where}: {row['file']}")[0] if known else 0 for row in rows]
    return [{**row, "label": number} for row, number in zip(rows, numbers, strict=True)], known
