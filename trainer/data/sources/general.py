"""General texts whose perplexity says what a language model forgets while it is adapted (`task.retention`)."""

from __future__ import annotations

import hashlib
import json

from trainer import config_files
from trainer.data.sources import language_files, mixture
from trainer.data.sources.paths import expanded
from trainer.data.sources.types import TaskData
from trainer.errors import ConfigError
from trainer.hashing import sha256
from trainer.instantiate import make

SPLIT = "general"


def texts(name: str | None, path: str | None) -> TaskData:
    """The texts in one split: the first evaluation split of the task in conf/task/`name`, or a table with a column
    `text`. Raises `ConfigError`."""
    if name is not None and path is not None:
        raise ConfigError(f"task.retention_path: {path!r} with task.retention: {name!r}, allowed: one of them")
    if path is not None:
        try:
            files = dict.fromkeys(("train", "validation"), expanded(path))
            found = language_files.load(files, {"text": "text"}, 0.1)
        except ConfigError as error:
            raise ConfigError(str(error).replace("task.source.train_path", "task.retention_path", 1)) from None
    else:
        found = make("task.source", _source(str(name))).load()
    split = next(rows for key, rows in found.splits.items() if key != "train")
    if "text" not in split.column_names:
        raise ConfigError(f"task.retention: {name!r} has the columns {', '.join(split.column_names)}; allowed: text")
    return TaskData({SPLIT: split}, None)


def identity(name: str | None, path: str | None) -> dict[str, str]:
    """What a run's hash must include of the texts; empty without any. Raises `ConfigError`."""
    if path is not None:
        try:
            return {"file": sha256(expanded(path))}
        except OSError as error:
            raise ConfigError(f"task.retention_path: {path!r} can't be read: {error.strerror or error}") from None
    if name is None:
        return {}
    source = _source(name)
    content = [{key: value for key, value in source.items() if not key.endswith("path")}]
    content.append(make("task.source", source).identity())
    return {"content": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}


def _source(name: str) -> dict[str, object]:
    """The source of a task in conf/task. Raises `ConfigError` where there is none."""
    if config_files.find("task", name) is None:
        raise ConfigError(f"task.retention: {name!r}, allowed: the name of a file in conf/task, or task.retention_path")
    found: dict[str, object] = mixture.task(name, "task.retention")["source"]
    return found
