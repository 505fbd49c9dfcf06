"""A task made of several: rows of each, of which training draws shares, and evaluation keeps them apart.

A task's share of an epoch is proportional to weight · size ** s, where size is its number of training rows and s is 0
(`sampling: weights`), 1 (`proportional`) or 1 / temperature (`temperature`; Raffel et al., "Exploring the Limits of
Transfer Learning with a Unified Text-to-Text Transformer", JMLR 2020, section 3.5.2). `trainer.data.shares` draws them.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from trainer import config_files
from trainer.data.sources.types import Split, TaskData
from trainer.errors import ConfigError, one_line
from trainer.instantiate import make
from trainer.plain import mapping

log = logging.getLogger(__name__)

SAMPLING = ("weights", "proportional", "temperature")
FIELD = "task.source.tasks"


@dataclass(frozen=True)
class Mixture:
    """tasks: weights, above 0, by the name of a file in conf/task. temperature: of `sampling: temperature`. glue_path:
    where the GLUE tasks are, as `glue.path`."""

    tasks: Mapping[str, float]
    sampling: str = "weights"
    temperature: float | None = None
    glue_path: str | None = None

    def __post_init__(self) -> None:
        if len(self.tasks) < 2:
            raise ConfigError(f"{FIELD}: {dict(self.tasks)!r}; allowed: two or more tasks and their weights")
        for name, weight in self.tasks.items():
            if config_files.find("task", name) is None:
                raise ConfigError(f"{FIELD}: {name!r}; allowed: the name of a file in conf/task")
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
                raise ConfigError(f"{FIELD}.{name}: {weight!r}; allowed: a number above 0")
        if self.sampling not in SAMPLING:
            raise ConfigError(f"task.source.sampling: {self.sampling!r}; allowed: {', '.join(SAMPLING)}")
        given, positive = self.temperature is not None, self.temperature is None or self.temperature > 0
        if given != (self.sampling == "temperature") or not positive:
            allowed = "a number above 0" if self.sampling == "temperature" else "null"
            raise ConfigError(
                f"task.source.temperature: {self.temperature} with sampling: {self.sampling}; allowed: {allowed}"
            )

    def load(self) -> TaskData:
        """Returns train and validation (the first evaluation split of each task), with the column `task`.

        Raises `ConfigError` for tasks of different kinds, columns or classes.
        """
        parts = {name: make("task.source", node["source"]).load() for name, node in self._nodes()}
        (first, one), *others = parts.items()
        for name, other in others:
            for what in ("column_names", "labels"):
                own, theirs = getattr(one, what), getattr(other, what)
                if own != theirs:
                    kind = "columns" if what == "column_names" else "classes"
                    named = [", ".join(each or ()) or "none" for each in (own, theirs)]
                    raise ConfigError(
                        f"{FIELD}: {kind} {named[0]} of {first} and {named[1]} of {name}; allowed: the same"
                    )
        train = _together({name: part.splits["train"] for name, part in parts.items()})
        held = _together(
            {name: next(s for key, s in part.splits.items() if key != "train") for name, part in parts.items()}
        )
        if repeated := len(_contents(train) & _contents(held)):
            log.warning("%s: %d rows of validation are also in train", FIELD, repeated)
        sizes = {name: len(part.splits["train"]) for name, part in parts.items()}
        return TaskData({"train": train, "validation": held}, one.labels, self._shares(sizes))

    def identity(self) -> dict[str, str]:
        """Returns for each task a hash of its source's settings and of the content that they don't pin."""
        found = {}
        for name, node in self._nodes():
            source = node["source"]
            settings = {key: value for key, value in source.items() if not key.endswith("path")}
            content = [settings, make("task.source", source).identity()]
            found[name] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return found

    def _shares(self, sizes: Mapping[str, int]) -> dict[str, float]:
        power = {"weights": 0.0, "proportional": 1.0, "temperature": 1 / (self.temperature or 1)}[self.sampling]
        parts = {name: self.tasks[name] * size**power for name, size in sizes.items()}
        return {name: part / sum(parts.values()) for name, part in parts.items()}

    def _nodes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The tasks' files by name, in the order of their names. Raises `ConfigError` for tasks of different kinds."""
        kinds = {}
        for name in sorted(self.tasks):
            node = task(name, FIELD, self.glue_path)
            kinds[name] = node.get("kind") or None
            if kinds[name] != kinds[min(kinds)]:
                named = [kinds[each] or "classes or numbers of texts" for each in (min(kinds), name)]
                raise ConfigError(f"{FIELD}: {min(kinds)} is {named[0]}, {name} {named[1]}; allowed: one kind")
            if node["source"]["_target_"].endswith(".Mixture"):
                raise ConfigError(f"{FIELD}: {name} is a mixture itself; allowed: its tasks")
            yield name, node


def task(name: str, field: str, glue: str | None = None) -> dict[str, Any]:
    """The file of a task in conf/task. glue: the value of `glue.path`. Raises `ConfigError`, beginning with `field`."""
    try:
        loaded = OmegaConf.load(config_files.find("task", name) or f"{name}.yaml")
        assert isinstance(loaded, DictConfig)
        return mapping(OmegaConf.create({"task": loaded, "glue": {"path": glue}}).task)
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{field}: {name}: {one_line(error)}; allowed: a task without settings") from None


def _together(parts: Mapping[str, Any]) -> Split:
    """Rows of all parts, with their task; an id begins with it."""
    columns: dict[str, list[Any]] = {}
    for name, part in parts.items():
        for column in part.column_names:
            values = part[column][:]
            columns.setdefault(column, []).extend(f"{name}-{key}" for key in values) if column == "id" else (
                columns.setdefault(column, []).extend(values)
            )
        columns.setdefault("task", []).extend([name] * len(part))
    return Split(columns)


def _contents(split: Split) -> set[str]:
    """Hashes of what the rows say, whatever their task."""
    names = [name for name in split.column_names if name not in ("id", "task")]
    return {
        hashlib.sha256(repr([row[name] for name in names]).encode("utf-8", "surrogatepass")).hexdigest()
        for row in split
    }
