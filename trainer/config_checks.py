"""Checks that every config must pass before a class checks its own settings. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from trainer import classes
from trainer.errors import ConfigError, a_file
from trainer.objectives import kinds

# Fields of the groups with plain YAML files. A file may add fields to which its other fields refer.
FIELDS = {
    "task": kinds.OF_EVERY_TASK,
    "model": ("name", "sources", "dtype", "dropout", "keep_head", "quantize", "files"),
}
NODE = "a mapping with a class as _target_"


def check(config: DictConfig) -> None:
    """Raises `ConfigError` for a value that no file can store, an invalid name, and a part of the wrong type."""
    tree = OmegaConf.to_container(config, resolve=True)
    for name, value in _leaves("", tree):
        _refuse_unwritable(name, value)
    for group in ("variant", "task", "model"):
        ensure(group, config[group], isinstance(config[group], DictConfig), a_file(group, config[group]))
        _name(f"{group}.name", config[group].get("name"))
    variant, task, model = config.variant, config.task, config.model
    # The settings of another run are checked when that run is planned (`trainer.sweeps.found_ranks`).
    _node("variant", OmegaConf.create({n: v for n, v in _plain(variant).items() if n != "ranks_from"}))
    _node("task.source", task.get("source"))
    kinds.target(task.get("kind"))
    metrics = _plain(task.get("metrics"))
    texts = isinstance(metrics, list) and all(isinstance(name, str) for name in metrics)
    ensure("task.metrics", metrics, texts and metrics and len(set(metrics)) == len(metrics), "a list of metrics")
    sources = _plain(model.get("sources"))
    ensure("model.sources", sources, isinstance(sources, list) and sources, f"a list of: {NODE}")
    for source in model.sources:
        _node("model.sources", source)
    files = _plain(model.get("files"))
    ensure("model.files", files, isinstance(files, dict), "{file name: sha256}, or {}")
    _node("optim.optimizer", config.optim.optimizer)
    if _plain(config.tracker) not in (None, {}):
        ensure("tracker", config.tracker, isinstance(config.tracker, DictConfig), a_file("tracker", config.tracker))
        _node("tracker", config.tracker)
    if config.machine.judge is not None:
        _node("machine.judge", config.machine.judge)


def refuse_ignored(config: DictConfig) -> None:
    """Raises `ConfigError` for a field of task or model that neither the suite nor the group's own file reads.

    A resolved config has no references between fields; there a field counts as read if a source has its value.
    """
    for group, known in FIELDS.items():
        if not isinstance(config[group], DictConfig):
            continue
        texts = [str(value) for _, value in _leaves("", OmegaConf.to_container(config[group], resolve=False))]
        referred = {name for text in texts for name in re.findall(rf"\$\{{(?:\.+|{group}\.)(\w+)", text)}
        plain = OmegaConf.to_container(config[group], resolve=True)
        assert isinstance(plain, dict)
        sources = [value for _, value in _leaves("", {name: plain.get(name) for name in ("source", "sources")})]
        referred |= {name for name, value in plain.items() if isinstance(value, str) and value in sources}
        if group == "task":
            known = (*known, *kinds.settings(config.task.get("kind")))
        allowed = [*known, *sorted(referred - {*known})]
        for name in config[group]:
            if name not in allowed and plain[name] is not None:
                raise ConfigError(f"{group}.{name}: no such field, allowed: {', '.join(allowed)}")


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of all leaves of a tree, keys and list members included."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            below = f"{name}.{key}" if name else f"{key}"
            ensure(name, key, isinstance(key, str), "text as its names")
            yield below, key
            yield from _leaves(below, part)
    elif isinstance(value, list):
        for part in value:
            yield from _leaves(name, part)
    else:
        yield name, value


def _refuse_unwritable(name: str, value: Any) -> None:
    if isinstance(value, float):
        ensure(name, value, math.isfinite(value), "a finite number")
    elif isinstance(value, int):
        ensure(name, value, -(2**63) <= value < 2**63, "a whole number of 64 bits")
    elif isinstance(value, str):
        # A byte of the command line that is not UTF-8 arrives as a lone surrogate.
        valid = "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)
        ensure(ascii(name)[1:-1], value, valid, "text in UTF-8, without a zero")


def _name(field: str, value: Any) -> None:
    good = isinstance(value, str) and value.strip() and value.isprintable()
    quoted = f"; in quotes it is text: \"{field}='{value}'\"" if isinstance(value, int | float) else ""
    ensure(field, value, good, f"one line of text, a name for tables{quoted}")


def _node(field: str, node: Any) -> None:
    ensure(field, _plain(node), isinstance(node, DictConfig), NODE)
    target = node.get("_target_")
    ensure(f"{field}._target_", _plain(target), isinstance(target, str) and target, "the dotted name of a class")
    classes.refuse_special(field, node)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def ensure(name: str, value: Any, good: Any, allowed: str) -> None:
    """Raises `ConfigError` unless `good`."""
    if not good:
        raise ConfigError(f"{name}: {value!r}, allowed: {allowed}")
