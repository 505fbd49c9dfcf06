"""Which run a config means, where it lies, and whether it is done. Imports no torch."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from trainer import config as run_config
from trainer import launch, lock, shape
from trainer import record as run_record
from trainer.errors import ConfigError
from trainer.record import CorruptRecord, Record
from trainer.sources import ModelSource, model_identity
from variants.core import fields

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """One run before it starts. record: what its folder holds, None where there is none to trust."""

    config: DictConfig
    identity: dict[str, Any]
    run_id: str
    folder: Path
    record: Record | None

    @property
    def done(self) -> bool:
        return self.record is not None and self.record.status == "done"

    @property
    def pruned(self) -> bool:
        return self.record is not None and self.record.status == "pruned"

    @property
    def failed(self) -> bool:
        return self.record is not None and self.record.status == "failed"

    def alone(self) -> AbstractContextManager[None]:
        """Within it no other process carries out this run. Raises `Held` where one does; see `trainer.lock`.

        Of several processes for one run the first holds the lock.
        """
        return contextlib.nullcontext() if launch.this().rank else lock.alone(self.folder)

    @property
    def title(self) -> str:
        """How the run is called on a terminal."""
        config = self.config
        return f"{config.variant.name} on {config.task.name}, seed {config.seed} ({self.run_id})"

    @property
    def summary(self) -> str:
        """A run that is done, on a terminal: what it is, its metric and where it lies."""
        assert self.record is not None and self.record.metric.value is not None
        return f"{self.title}: {self.record.metric.name} {self.record.metric.value:.4f}  {self.folder}"


def plan(
    config: DictConfig,
    files: Mapping[str, Any] | None = None,
    exists: Callable[[Path], bool] = lambda folder: True,
) -> Planned:
    """The run that `config` means. Raises `ConfigError` for a config that no run can have.

    files: what `content` says, where it is known. exists: False for a folder that need not be looked into.
    """
    _settle_processes(config)
    shape.refuse_unread(config)
    identity = identify(config, files)
    tracker(config)
    run_id = run_config.run_id(identity)
    folder = Path(config.runs_dir) / config.study / run_id
    try:
        found = run_record.read(folder) if exists(folder) else None
    except CorruptRecord as error:
        log.warning("%s; the run is done again", error)
        found = None
    if found is None:
        _check_place(config.runs_dir, folder.parent)
    return Planned(config, identity, run_id, folder, found)


@functools.cache
def _check_place(runs_dir: str, folder: Path) -> None:
    """Raises `ConfigError` where a study's folder can't be made or written to; looked at once for all its runs."""
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:  # a name that is too long
        raise ConfigError(f"runs_dir: {runs_dir!r} can't be a folder: {error.strerror or error}") from None
    if not there.is_dir():
        raise ConfigError(f"runs_dir: {runs_dir!r}, allowed: a folder; {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"runs_dir: {runs_dir!r}, allowed: a folder that can be written to; {there} can't")


def _settle_processes(config: DictConfig) -> None:
    """Makes `train.processes` the number that was started: the result is a function of it. Null is one."""
    started, wanted = launch.this().count, config.train.processes
    if wanted is not None and wanted != started:
        how = f"torchrun --nproc-per-node {wanted} train.py … starts as many"
        raise ConfigError(f"train.processes: {wanted}, allowed: {started}, as were started, or null; {how}")
    if config.machine.fsdp and started == 1:
        raise ConfigError("machine.fsdp: true with one process, allowed: false; there is none to share with")
    config.train.processes = started if started > 1 else None


def identify(config: DictConfig, files: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the run of `config` is a function of, content of files included. Raises `ConfigError`."""
    run_config.validate(config)
    return run_config.identity(config, content(config) if files is None else files)


def content(config: DictConfig) -> dict[str, Any]:
    """Fingerprints of the files that `config` names, in place of where they lie. Raises `ConfigError`."""
    return {
        "task": {"source": make("task.source", config.task.source).identity()},
        "model": {"content": model_identity(model_sources(config), config.model.files)},
    }


def model_sources(config: DictConfig) -> list[ModelSource]:
    """The places that the model may come from, in the order in which they are tried."""
    return [make("model.sources", source) for source in config.model.sources]


def tracker(config: DictConfig) -> Any:
    """The tracker that `config` names, not started; None for none. Raises `ConfigError` where it can't work."""
    if not config.tracker:
        return None
    found = make("tracker", config.tracker)
    found.check()
    return found


def make(field: str, node: Any, **arguments: Any) -> Any:
    """Instantiates the config node `field` by its `_target_`. Raises `ConfigError`.

    Before anything is called the target is a class with the methods of its part, and the settings are those that the
    class has, of the types that it names. arguments: given besides, or `_partial_`.
    """
    settings = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else dict(node)
    assert isinstance(settings, dict)
    cls = _class(field, settings.pop("_target_"))
    _check_names(field, cls, settings, arguments)
    plain = {name: value for name, value in settings.items() if not isinstance(value, dict) or "_target_" not in value}
    named(field, fields.check_types, cls, plain)
    try:
        return instantiate(node, _convert_="all", **arguments)
    except InstantiationException as error:
        cause = error.__cause__
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, ConfigError):
            raise cause from None
        text = " ".join(str(cause if cause is not None else error).split())
        raise ConfigError(f"{field}.{text}" if isinstance(cause, ValueError) else f"{field}: {text}") from error


# What a class must have to be what a part of the config asks for: how it is called, and its methods.
PARTS = {
    "variant": ("variant", ("plan", "check", "attach")),
    "task.source": ("source of a task", ("load", "identity")),
    "model.sources": ("source of a model", ("fetch", "identity")),
    "optim.optimizer": ("optimizer", ("step", "zero_grad", "add_param_group")),
    "tracker": ("tracker", ("check", "start", "log", "finish")),  # see trainer.trackers.tracker.Tracker
    "machine.judge": ("judge", ("__call__",)),
}


def _class(field: str, target: str) -> type:
    what, methods = PARTS[field]
    try:
        cls = get_class(target)
    except Exception as error:  # whatever importing a module may raise
        text = " ".join(str(error).split())
        raise ConfigError(f"{field}._target_: {target!r}, allowed: the dotted name of a class; {text}") from error
    for method in methods:
        if not any(method in vars(base) for base in cls.__mro__):
            raise ConfigError(f"{field}._target_: {cls.__name__!r} is no {what}: it has no {method}()")
    return cls


def _check_names(field: str, cls: type, settings: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Raises `ConfigError` for a setting that `cls` doesn't have, and for one that it must be given and isn't."""
    known = fields.arguments(cls)
    if any(one.kind is one.VAR_KEYWORD for one in known.values()):
        return
    for name in settings:
        if name not in known:
            allowed = ", ".join(known)
            raise ConfigError(
                f"{field}.{name}: {settings[name]!r}, {cls.__name__} has no such field, allowed: {allowed}"
            )
    if "_partial_" in arguments:  # the rest is given to what is made
        return
    for name, one in known.items():
        given = name in settings or name in arguments or one.default is not one.empty
        if not given and one.kind is not one.VAR_POSITIONAL:
            raise ConfigError(f"{field}.{name}: not given, {cls.__name__} has no default for it")


def named(field: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a hook of what `field` configures; the `ValueError` it raises gets the field's name."""
    try:
        return call(*arguments)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{field}.{error}") from error
