"""What a `_target_` of a config may name, looked at before it is called: a config is data, and may be a stranger's.

Only a class is called, and only one that is what its place needs. A function (one that unpickles, say) never is, and
nothing within the settings of a class is made into an object. Imports no torch but for classes that need it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hydra._internal.utils import _locate  # get_object says on the terminal what it does not find
from omegaconf import DictConfig, OmegaConf

from trainer import class_source
from trainer.errors import ConfigError, message


@dataclass(frozen=True)
class Kind:
    """What a class must be: one with these methods, or a subclass of `base`, which is imported to see it."""

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
    "machine.judge": Kind("judge of a search", base="trainer.sweeps.search.TrialPruner"),
    "tracker": Kind("tracker", methods=("check", "start", "log", "finish")),  # trainer.trackers.tracker.Tracker
}


def chosen(field: str, node: Any) -> type:
    """The class that the node of this field names. Raises `ConfigError` where it is not of the kind that it must be."""
    kind, settings = KINDS[field], OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
    target = settings.get("_target_") if isinstance(settings, Mapping) else None
    if not isinstance(target, str):
        raise ConfigError(f"{field}._target_: {target!r}, allowed: the path of a {kind.name}'s class")
    assert isinstance(settings, Mapping)
    refuse_special(field, settings)
    try:
        found = _locate(class_source.current(target))
    except Exception as error:  # whatever importing a module may raise
        text = message(error)
        raise ConfigError(f"{field}._target_: {target!r}, allowed: the dotted name of a class; {text}") from error
    if not isinstance(found, type):
        raise ConfigError(f"{field}._target_: {target!r} is no class, allowed: the class of a {kind.name}")
    for method in kind.methods:
        if not callable(getattr(found, method, None)):
            raise ConfigError(f"{field}._target_: {found.__name__!r} is no {kind.name}: it has no {method}()")
    if kind.base:
        module, _, name = kind.base.rpartition(".")
        if not issubclass(found, getattr(importlib.import_module(module), name)):
            raise ConfigError(f"{field}._target_: {target!r}, allowed: a subclass of {kind.base}")
    return found


def refuse_special(field: str, settings: Mapping[Any, Any]) -> None:
    """Refuses what Hydra would take for more than a value: positional arguments, functions, objects within objects.

    settings: of a class, its `_target_` among them. Raises `ConfigError`.
    """
    for name, value in settings.items():
        if str(name).startswith("_") and name != "_target_":
            raise ConfigError(f"{field}.{name}: no such field, allowed: _target_ and those of the class")
        for place, below in _below(str(name), value):
            if "_target_" in below:
                found = below["_target_"]
                raise ConfigError(f"{field}.{place}._target_: {found!r}, allowed: plain settings of a class")


def _below(name: str, value: Any) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    if isinstance(value, Mapping | DictConfig):
        yield name, value
        for key, entry in value.items():
            yield from _below(f"{name}.{key}", entry)
    elif isinstance(value, list | tuple):
        for place, entry in enumerate(value):
            yield from _below(f"{name}.{place}", entry)
