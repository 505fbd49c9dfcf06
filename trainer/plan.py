"""Which run a config means, where it lies, and whether it is done. Imports no torch."""

from __future__ import annotations

import contextlib
import inspect
import logging
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig

from trainer import config as run_config
from trainer import launch, lock
from trainer import record as run_record
from trainer.errors import ConfigError
from trainer.record import CorruptRecord, Record
from trainer.sources import ModelSource, model_identity
from trainer.sources.paths import expanded

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
    identity = identify(config, files)
    tracker(config)
    run_id = run_config.run_id(identity)
    folder = expanded(config.runs_dir) / config.study / run_id
    try:
        found = run_record.read(folder) if exists(folder) else None
    except CorruptRecord as error:
        log.warning("%s; the run is done again", error)
        found = None
    return Planned(config, identity, run_id, folder, found)


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
    for method in ("check", "start", "log", "finish"):  # see trainer.trackers.tracker.Tracker
        if not callable(getattr(found, method, None)):
            raise ConfigError(f"tracker._target_: {type(found).__name__!r} is no tracker: it has no {method}()")
    found.check()
    return found


def make(field: str, node: Any, **arguments: Any) -> Any:
    """Instantiates the config node `field` by its `_target_`; what its class refuses is a `ConfigError`."""
    try:
        return instantiate(node, _convert_="all", **arguments)
    except InstantiationException as error:
        cause = error.__cause__
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, ConfigError):
            raise cause from None
        text = " ".join(str(cause if cause is not None else error).split())
        unknown = re.search(r"unexpected keyword argument '(\w+)'", text) if isinstance(cause, TypeError) else None
        if unknown and unknown[1] in node:
            name, cls = unknown[1], get_class(node["_target_"])
            allowed = ", ".join(inspect.signature(cls).parameters)
            line = f"{field}.{name}: {node[name]!r}, {cls.__name__} has no such field, allowed: {allowed}"
            raise ConfigError(line) from error
        raise ConfigError(f"{field}.{text}" if isinstance(cause, ValueError) else f"{field}: {text}") from error


def named(field: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a hook of what `field` configures; the `ValueError` it raises gets the field's name."""
    try:
        return call(*arguments)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{field}.{error}") from error
