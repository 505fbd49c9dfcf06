"""The run of a config: its name, its folder, and whether it is done. Imports no torch."""

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

from trainer import class_source, code_hash, config_checks, origin, teacher
from trainer import config as run_config
from trainer import identity as identities
from trainer import record as run_record
from trainer.data.sources import ModelSource, general, model_identity
from trainer.data.sources.paths import expanded
from trainer.errors import ConfigError
from trainer.identity import Identity
from trainer.instantiate import make
from trainer.loop import unfinished
from trainer.machine import launch, lock
from trainer.objectives import kinds
from trainer.record import CorruptRecord, Record
from trainer.sweeps import found_ranks
from variants.core import placement

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """One run before it starts.

    run_id: the run's name; that of identity version 1 if a record exists under it. code: hashes of code by the field
    that names the class, see `code_hashes`. record: the trusted record in the folder, or None. replaces: folder of the
    finished run that this one repeats. label: the run's title in a sweep, None for a single run.
    """

    config: DictConfig
    identity: Identity
    run_id: str
    code: dict[str, str]
    folder: Path
    record: Record | None
    replaces: Path | None = None
    label: str | None = None

    @property
    def done(self) -> bool:
        return self.record is not None and self.record.status == "done"

    @property
    def other_code(self) -> list[str]:
        """The fields whose classes' code has changed since the run was done."""
        recorded = self.record.code if self.record is not None and self.done else {}
        targets = _targets(self.config)
        return [
            name
            for name, code in self.code.items()
            if name in recorded and code not in (recorded[name], code_hash.today(targets[name], recorded[name]))
        ]

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

    def locked(self) -> AbstractContextManager[None]:
        """Locks the run. Raises `Locked` if another process is carrying it out; see `trainer.machine.lock`.

        If several processes share the run, the first one takes the lock.
        """
        return contextlib.nullcontext() if launch.this().rank else lock.locked(self.folder)

    @property
    def title(self) -> str:
        """The run's title on a terminal."""
        config = self.config
        label = self.label or f"{config.variant.name} on {config.task.name}, seed {config.seed}"
        return f"{label} ({self.run_id})"

    @property
    def summary(self) -> str:
        """One line about a finished run: title, metric and folder."""
        assert self.record is not None and self.record.metric.value is not None
        line = f"{self.title}: {self.record.metric.name} {self.record.metric.value:.4f}  {self.folder}"
        if changed := self.other_code:
            return f"{line}  (the code of its {' and '.join(changed)} has changed since; redo=true repeats it)"
        return line


def plan(
    config: DictConfig,
    files: Mapping[str, Any] | None = None,
    exists: Callable[[Path], bool] = lambda folder: True,
) -> Planned:
    """The run of `config`. Raises `ConfigError` for an invalid config.

    files: the result of `content`, if the caller has it. exists: False for a folder that is known not to exist.
    """
    _settle_processes(config)
    run_config.refuse_missing(config)
    config_checks.refuse_ignored(config)
    teacher.refuse_alone(config)
    identity = identify(config, files)
    tracker(config)
    code = code_hashes(config)
    study = expanded(config.runs_dir) / config.study

    def planned(run_id: str) -> Planned:
        folder = study / run_id
        return Planned(config, identity, run_id, code, folder, _record(folder) if exists(folder) else None)

    run = new = planned(identity.run_id)
    if run.record is None:
        _check_writable(config.runs_dir, study)
    if run.record is None and identity.earlier is not None:
        earlier = planned(identity.earlier)
        run = new if earlier.record is None or earlier.failed else earlier
    if run.done and run.record is not None and (found := found_ranks.find(config, plan)) is not None:
        found_ranks.warn_if_repeated(found, run.record, identity)
    if config.init_from is not None and (config.redo or not run.done):
        origin.find(config.init_from).refuse_another(identity)
    return replace(new, record=None, replaces=run.folder) if config.redo and run.record is not None else run


def _record(folder: Path) -> Record | None:
    """The trusted record of a run's folder, or None. Removes checkpoints that a finished run has left."""
    try:
        record = run_record.read(folder)
    except CorruptRecord as error:
        log.warning("%s; the run is repeated", error)
        return None
    if record is None:
        return None
    if reason := run_record.misplaced(record.run_id, folder):
        log.warning("%s; the run is repeated", reason)
        return None
    if record.study != folder.parent.name:
        _warn_of_copy(folder.parent, record.study)
    if record.status == "done" and unfinished.remains(folder):  # it was killed just before it removed them itself
        log.info("%s: done; its checkpoints are removed", folder)
        unfinished.remove(folder)
    return record


@functools.cache
def _warn_of_copy(folder: Path, study: str) -> None:
    """Warns once for all runs of a study."""
    log.warning("%s: contains records of the study %r; they are used unchanged", folder, study)


@functools.cache
def _check_writable(runs_dir: str, folder: Path) -> None:
    """Raises `ConfigError` if a study's folder can't be created or written to; cached for all its runs."""
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:  # the name is too long
        raise ConfigError(f"runs_dir: {runs_dir!r}, allowed: a folder; {error.strerror or error}") from None
    if not existing.is_dir():
        raise ConfigError(f"runs_dir: {runs_dir!r}, allowed: a folder; {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"runs_dir: {runs_dir!r}, allowed: a writable folder; {existing} is not writable")


def _settle_processes(config: DictConfig) -> None:
    """Sets `train.processes`, on which the result depends, to the number of started processes; null means one."""
    started, wanted = launch.this().count, config.train.processes
    if wanted is not None and wanted != started:
        script = "-m loratory train" if placement.PREFIX else "train.py"
        how = f"torchrun --nproc-per-node {wanted} {script} … starts that many"
        raise ConfigError(f"train.processes: {wanted}, allowed: {started} (the number started) or null; {how}")
    if config.machine.fsdp and started == 1:
        raise ConfigError("machine.fsdp: true with one process, allowed: false; sharding needs several")
    config.train.processes = started if started > 1 else None


def identify(config: DictConfig, files: Mapping[str, Any] | None = None) -> Identity:
    """The identity of the run: all that its result depends on, contents of files included. Raises `ConfigError`."""
    run_config.validate(config)
    files = content(config) if files is None else files
    if (found := found_ranks.find(config, plan, files)) is not None:
        files = {**files, "variant": {found_ranks.FIELD: found.leaves()}}
    own = {f"task.{name}": value for name, value in kinds.settings(config.task.get("kind")).items()}
    return identities.identify(run_config.deciding(config), files, run_config.defaults() | own)


def content(config: DictConfig) -> dict[str, Any]:
    """Fingerprints of the files that `config` names; they replace paths in the identity. Raises `ConfigError`."""
    stated = [value for value in run_config.deciding(config)["model"].values() if isinstance(value, str)]
    fingerprints: dict[str, Any] = {
        "task": {
            "source": make("task.source", config.task.source).identity(),
            "general": general.identity(config.task.get("retention"), config.task.get("retention_path")),
        },
        "model": {"content": model_identity(model_sources(config), config.model.files, stated)},
    }
    if config.init_from is not None:
        fingerprints["init_from"] = origin.find(config.init_from).identity()
    if config.train.teacher is not None:
        fingerprints["teacher"] = teacher.find(config.train.teacher).identity()
    return fingerprints


def code_hashes(config: DictConfig) -> dict[str, str]:
    """Hashes of the code that a run uses, by the field that names the class, if the source can be read.

    They include the method and the user's own kind of task, task source and optimizer. The suite's other classes are
    covered by the recorded commit, installed ones by the recorded versions.
    """
    hashes = {name: code_hash.of(target) for name, target in _targets(config).items()}
    return {name: code for name, code in hashes.items() if code is not None}


def _targets(config: DictConfig) -> dict[str, str]:
    """The classes whose code `code_hashes` hashes."""
    targets = {
        "task.kind": kinds.target(config.task.get("kind")),
        "task.source": config.task.source.get("_target_"),
        "optim.optimizer": config.optim.optimizer.get("_target_"),
    }
    own = {name: target for name, target in targets.items() if target and class_source.is_own(target)}
    return {"variant": config.variant._target_, **own}


def model_sources(config: DictConfig) -> list[ModelSource]:
    """The sources of the model, in the order in which they are tried."""
    return [make("model.sources", source) for source in config.model.sources]


def tracker(config: DictConfig) -> Any:
    """The tracker of `config`, not started, or None. Raises `ConfigError` if it can't work here."""
    if not config.tracker:
        return None
    chosen = make("tracker", config.tracker)
    chosen.check()
    return chosen
