"""Checks what a `_target_` of a config names before it is called, because a config may come from a stranger.

Only classes are called, and only those of the kind that the field needs. Functions are never called (one might
unpickle a file), and no setting of a class is turned into an object. Imports torch only for classes that need it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hydra._internal.utils import _locate  # get_object prints what it does not find
from omegaconf import DictConfig, OmegaConf

from trainer import class_source
from trainer.errors import ConfigError, message
from variants.core import placement


@dataclass(frozen=True)
class Kind:
    """Requirements on a class: it has these methods, or it is a subclass of `base`."""

    name: str
    methods: tuple[str, ...] = ()
    base: str = ""


# By the field that names the class.
KINDS = {
    "variant": Kind("variant", base="variants.core.variant.Variant"),
    "task.source": Kind("task source", methods=("load", "identity")),  # trainer.data.sources.TaskSource
    "task.kind": Kind("kind of task", base="trainer.objectives.objective.Objective"),
    "model.sources": Kind("model source", methods=("fetch", "identity")),  # trainer.data.sources.ModelSource
    "optim.optimizer": Kind("optimizer", base="torch.optim.Optimizer"),
    "machine.judge": Kind("pruner of a search", base="trainer.sweeps.search.TrialPruner"),
    "tracker": Kind("tracker", methods=("check", "start", "log", "finish")),  # trainer.trackers.tracker.Tracker
}


def chosen(field: str, node: Any) -> type:
    """The class that the node of this field names. Raises `ConfigError` if it is not of the field's kind."""
    kind, settings = KINDS[field], OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
    target = settings.get("_target_") if isinstance(settings, Mapping) else None
    if not isinstance(target, str):
        raise ConfigError(f"{field}._target_: {target!r}, allowed: the path of a {kind.name}'s class")
    assert isinstance(settings, Mapping)
    refuse_special(field, settings)
    try:
        if placement.PREFIX:  # code of the user may have been written in a checkout
            placement.accept("", placement.PREFIX)
        cls = _locate(placement.imported(class_source.current(target)))
    except Exception as error:  # an import may raise anything
        text = message(error)
        raise ConfigError(f"{field}._target_: {target!r}, allowed: the dotted name of a class; {text}") from error
    if not isinstance(cls, type):
        raise ConfigError(f"{field}._target_: {target!r} is not a class, allowed: the class of a {kind.name}")
    for method in kind.methods:
        if not callable(getattr(cls, method, None)):
            raise ConfigError(f"{field}._target_: {cls.__name__!r} is not a {kind.name}: it has no {method}()")
    if kind.base:
        module, _, name = kind.base.rpartition(".")
        if not issubclass(cls, getattr(importlib.import_module(placement.imported(module)), name)):
            raise ConfigError(f"{field}._target_: {target!r}, allowed: a subclass of {kind.base}")
    return cls


def refuse_special(field: str, settings: Mapping[Any, Any]) -> None:
    """Raises `ConfigError` for settings that Hydra would not take as values: `_args_`, `_partial_`, nested objects.

    settings: of a class, `_target_` included.
    """
    for name, value in settings.items():
        if str(name).startswith("_") and name != "_target_":
            raise ConfigError(f"{field}.{name}: no such field, allowed: _target_ and those of the class")
        for path, nested in _mappings(str(name), value):
            if "_target_" in nested:
                target = nested["_target_"]
                raise ConfigError(f"{field}.{path}._target_: {target!r}, allowed: plain settings of a class")


def _mappings(name: str, value: Any) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """The mappings in a setting, itself included, with their dotted names."""
    if isinstance(value, Mapping | DictConfig):
        yield name, value
        for key, entry in value.items():
            yield from _mappings(f"{name}.{key}", entry)
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            yield from _mappings(f"{name}.{index}", entry)
