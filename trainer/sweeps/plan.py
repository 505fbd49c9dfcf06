"""Which run a config means, where it lies, and whether it is done. Imports no torch."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from trainer import class_source, config_checks, origin
from trainer import config as run_config
from trainer import identity as identities
from trainer import record as run_record
from trainer.data.sources import ModelSource, model_identity
from trainer.data.sources.paths import expanded
from trainer.errors import ConfigError
from trainer.identity import Identity
from trainer.instantiate import make
from trainer.loop import unfinished
from trainer.machine import launch, lock
from trainer.record import CorruptRecord, Record

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """One run before it starts.

    run_id: its name, that of version 1 where it was done under it. code: hash of its method's code, None where that
    can't be read. record: what its folder holds, None where there is none to trust. replaces: the folder of a finished
    run that is to be done again. label: how a sweep calls the run, where it is one of several.
    """

    config: DictConfig
    identity: Identity
    run_id: str
    code: str | None
    folder: Path
    record: Record | None
    replaces: Path | None = None
    label: str | None = None

    @property
    def done(self) -> bool:
        return self.record is not None and self.record.status == "done"

    @property
    def other_code(self) -> bool:
        """Whether the run was done with other code of its method than there is now."""
        before = None if self.record is None else self.record.code.get("variant")
        return self.done and None not in (before, self.code) and before != self.code

    @property
    def pruned(self) -> bool:
        return self.record is not None and self.record.status == "pruned"

    @property
    def failed(self) -> bool:
        return self.record is not None and self.record.status == "failed"

    @property
    def names(self) -> dict[str, Any]:
        """What a record and a dashboard call the run."""
        names = {part: self.config[part].name for part in ("variant", "task", "model")}
        return {"run_id": self.run_id, "study": self.config.study, **names, "seed": self.config.seed}

    def alone(self) -> AbstractContextManager[None]:
        """Within it no other process carries out this run. Raises `Held` where one does; see `trainer.machine.lock`.

        Of several processes for one run the first holds the lock.
        """
        return contextlib.nullcontext() if launch.this().rank else lock.alone(self.folder)

    @property
    def title(self) -> str:
        """How the run is called on a terminal."""
        config = self.config
        label = self.label or f"{config.variant.name} on {config.task.name}, seed {config.seed}"
        return f"{label} ({self.run_id})"

    @property
    def summary(self) -> str:
        """A run that is done, on a terminal: what it is, its metric and where it lies."""
        assert self.record is not None and self.record.metric.value is not None
        line = f"{self.title}: {self.record.metric.name} {self.record.metric.value:.4f}  {self.folder}"
        return f"{line}  (its method's code was different; redo=true does it again)" if self.other_code else line


def plan(
    config: DictConfig,
    files: Mapping[str, Any] | None = None,
    exists: Callable[[Path], bool] = lambda folder: True,
) -> Planned:
    """The run that `config` means. Raises `ConfigError` for a config that no run can have.

    files: what `content` says, where it is known. exists: False for a folder that need not be looked into.
    """
    _settle_processes(config)
    run_config.refuse_missing(config)
    config_checks.refuse_unread(config)
    identity = identify(config, files)
    tracker(config)
    code = class_source.code_hash(config.variant.get("_target_", ""))
    study = expanded(config.runs_dir) / config.study

    def planned(run_id: str) -> Planned:
        folder = study / run_id
        return Planned(config, identity, run_id, code, folder, _record(folder) if exists(folder) else None)

    run = new = planned(identity.run_id)
    if run.record is None:
        _check_place(config.runs_dir, study)
    if run.record is None and identity.earlier is not None:
        before = planned(identity.earlier)
        run = new if before.record is None or before.failed else before
    if config.init_from is not None and (config.redo or not run.done):
        origin.find(config.init_from).refuse_another(identity)
    return replace(new, record=None, replaces=run.folder) if config.redo and run.record is not None else run


def _record(folder: Path) -> Record | None:
    """The record of a run's folder, where there is one to trust; what only an unfinished run needs is cleared away."""
    try:
        found = run_record.read(folder)
    except CorruptRecord as error:
        log.warning("%s; the run is done again", error)
        return None
    if found is None:
        return None
    if wrong := run_record.misplaced(found.run_id, folder):
        log.warning("%s; the run is done again", wrong)
        return None
    if found.study != folder.parent.name:
        _say_copied(folder.parent, found.study)
    if found.status == "done" and unfinished.remains(folder):  # killed just before it had done so itself
        log.info("%s: done; its checkpoints are removed", folder)
        unfinished.remove(folder)
    return found


@functools.cache
def _say_copied(folder: Path, study: str) -> None:
    """Once for all runs of a study."""
    log.warning("%s: holds records of the study %r, which count as they are", folder, study)


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


def identify(config: DictConfig, files: Mapping[str, Any] | None = None) -> Identity:
    """What the run of `config` is a function of, content of files included. Raises `ConfigError`."""
    run_config.validate(config)
    files = content(config) if files is None else files
    return identities.identify(run_config.deciding(config), files, run_config.defaults())


def content(config: DictConfig) -> dict[str, Any]:
    """Fingerprints of the files that `config` names, in place of where they lie. Raises `ConfigError`."""
    found: dict[str, Any] = {
        "task": {"source": make("task.source", config.task.source).identity()},
        "model": {"content": model_identity(model_sources(config), config.model.files)},
    }
    if config.init_from is not None:
        found["init_from"] = origin.find(config.init_from).identity()
    return found


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
