"""Opens a finished run again: its reported model and its evaluation rows.

    with opened("runs/demo/0123456789ab") as run:
        run.evaluate().metrics       # equals the record's

Nothing in the run's folder is changed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from yaml import YAMLError

from trainer import config as run_config
from trainer import identity as identities
from trainer import origin, record
from trainer.config import Config
from trainer.data import rows
from trainer.data.rows import Rows
from trainer.data.sources import TaskData
from trainer.errors import ConfigError, RunFailed, one_line
from trainer.loop.batches import Batches, Collator
from trainer.loop.evaluation import Evaluation, Evaluator
from trainer.loop.loop import Loop
from trainer.model import agreement, backbone
from trainer.objectives.objective import NotFinite, Objective, Predictions
from trainer.record import ADAPTER, Record
from trainer.runs import assemble
from trainer.runs.assemble import RunContext
from trainer.sweeps.plan import content, identify
from variants.core import state_files
from variants.core import training_state as live
from variants.core.variant import Variant


@dataclass(frozen=True)
class Finished:
    """A run and its model, in evaluation mode."""

    folder: Path
    record: Record
    context: RunContext
    model: nn.Module
    device: torch.device
    scratch: Path  # a temporary folder for the loop's files

    @property
    def config(self) -> DictConfig:
        return self.context.config

    @property
    def variant(self) -> Variant:
        return self.context.variant

    @property
    def split(self) -> str:
        """The split of the record's metric."""
        return next(iter(self.context.rows.report))

    @property
    def title(self) -> str:
        """The run's name on a terminal."""
        row = self.record
        return f"{row.variant} on {row.task}, seed {row.seed} ({row.run_id})"

    def evaluate(self) -> Evaluation:
        """Evaluates the model in its current state on `split`, as the run was evaluated."""
        return self._loop.timed_evaluation(self.context.rows.report[self.split])

    @property
    def objective(self) -> Objective:
        return self.context.objective

    def predict(self, content: TaskData, referenced: bool = True) -> tuple[Predictions, list[int], int]:
        """Predicts the examples in the one split of `content`. referenced: as for `Objective.predicting`.

        Returns the predictions, the examples' indices in their order, and the number of truncated examples. Examples
        are tokenized, truncated and batched as in the run's evaluation. Raises `ConfigError` for an example that the
        model can't take, and `RunFailed` for outputs that are not finite.
        """
        (split,) = content.splits
        source, length = self.context.source, self.context.max_length
        objective = self.objective.predicting(content, referenced)
        objective.check()
        encoded = objective.encode(split, source, length)
        rows.refuse_letters(content, split, encoded.rows, encoded)
        arranged = objective.for_evaluation(encoded.rows, source, length)
        agreement.check_rows(backbone.skeleton(source, objective.architecture), arranged, split, content)
        self.model.eval()
        try:
            train, collate = self.config.train, Collator(objective.pad(source), objective.weigh)
            batches = Batches(arranged, train, self.config.seed, collate, self.config.machine.workers, self.device)
            evaluator = Evaluator(self._loop.network, objective, batches, train.eval_batch_size)
            return evaluator.predictions(arranged), arranged.examples, int(encoded.cut.sum())
        except NotFinite:
            raise RunFailed(f"{self.folder}: the model's outputs are not finite on these texts") from None

    def predictions(self, rows: Rows) -> Predictions:
        """Predicts some of the run's own rows with the model in its current state."""
        return self._loop.evaluator.predictions(rows)

    @functools.cached_property
    def _loop(self) -> Loop:
        return assemble.loop(self.context, self.model, self.scratch, self.device)


@contextlib.contextmanager
def opened(folder: str | os.PathLike[str], device: str | None = None) -> Iterator[Finished]:
    """Opens the run in `folder`. device: replaces the run's `machine.device`.

    Raises `ConfigError` for a folder without a finished run, and for a run whose model, texts or config have changed.
    """
    folder = Path(folder)
    row = origin.find(folder, "").record
    config = config_of(folder, row)
    chosen = assemble.device(device or config.machine.device)
    with assemble.apart(config), tempfile.TemporaryDirectory() as scratch:
        context = assemble.check(config)
        model = assemble.load(context)
        try:
            live.restore_weights(model, context.variant, state_files.load(folder / ADAPTER))
        except state_files.CorruptState as error:
            raise ConfigError(f"{folder / ADAPTER.parent}: not what this run trained: {error}") from None
        yield Finished(folder, row, context, model.eval(), chosen, Path(scratch))


def config_of(folder: Path, row: Record) -> DictConfig:
    """Loads the run's config. Raises `ConfigError` unless today's model and texts give the same run id."""
    path = folder / record.CONFIG
    try:
        saved = OmegaConf.load(path)
        assert isinstance(saved, DictConfig) and {"variant", "task", "model"} <= saved.keys(), "it lacks a group"
        # A field that is newer than the run has its default.
        config = OmegaConf.merge(OmegaConf.structured(Config), saved)
        assert isinstance(config, DictConfig)
        config.tracker = config.machine.judge = None  # not needed to open the run
        config.init_from = None  # the run's own adapter replaces the one that it started from
        config.train.teacher = None  # what was learned from it is in the adapter
        run_config.validate(config)
        # The config's values are compared first, because the classes that they name are called below.
        others = {name: value for name, value in row.config.items() if name.startswith(("init_from.", "teacher."))}
        bare = identities.identify(run_config.deciding(config), {}, run_config.defaults()).settings
        _compare(folder, bare, {name: value for name, value in row.config.items() if name in bare})
        now = identify(config, content(config) | others)
    except ConfigError:
        raise
    except (OSError, AssertionError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not the config of a run: {one_line(error)}") from None
    _compare(folder, now.settings, row.config)
    if row.run_id not in (now.run_id, now.earlier):  # they differ in a setting that the record lacks
        raise ConfigError(f"{path}: the config of the run {now.run_id}, the record is that of {row.run_id}")
    return config


def _compare(folder: Path, current: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    for name, value in sorted(recorded.items()):
        if current.get(name) != value:
            raise ConfigError(f"{folder}: {name} is {current.get(name)!r}, the run was made with {value!r}")
