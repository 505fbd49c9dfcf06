"""A finished run, opened again: its model as it was handed over, and what it was evaluated on.

    with opened("runs/demo/0123456789ab") as run:
        run.evaluate().metrics       # what the record says

Nothing in the run's folder is touched.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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
from trainer.loop.evaluation import Evaluation, Evaluator
from trainer.loop.loop import Loop
from trainer.model import agreement, backbone
from trainer.objectives.objective import NotFinite, Objective, Predictions
from trainer.record import ADAPTER, Record
from trainer.runs import assemble
from trainer.runs.assemble import Parts
from trainer.sweeps.plan import content, identify
from variants.core import state_files
from variants.core import training_state as live
from variants.core.variant import Variant


@dataclass(frozen=True)
class Finished:
    """A run and its model, in evaluation mode."""

    folder: Path
    record: Record
    parts: Parts
    model: nn.Module
    device: torch.device
    scratch: Path  # where the loop thinks that its files are

    @property
    def config(self) -> DictConfig:
        return self.parts.config

    @property
    def variant(self) -> Variant:
        return self.parts.variant

    @property
    def split(self) -> str:
        """The split that the record's metric is of."""
        return next(iter(self.parts.rows.report))

    @property
    def title(self) -> str:
        """How the run is called on a terminal."""
        row = self.record
        return f"{row.variant} on {row.task}, seed {row.seed} ({row.run_id})"

    def evaluate(self) -> Evaluation:
        """The model as it is now on `split`, in the way that the run was evaluated."""
        return self._loop.timed_evaluation(self.parts.rows.report[self.split])

    @property
    def objective(self) -> Objective:
        return self.parts.objective

    def predict(self, content: TaskData) -> tuple[Predictions, list[int], int]:
        """Of the examples in the one split of `content` what the model predicts, which they are, and how many were cut.

        They are read, cut and batched as those that the run was evaluated on. Raises `ConfigError` for an example that
        the model can't take, `RunFailed` for outputs that are not finite.
        """
        (split,) = content.splits
        source, length = self.parts.source, self.parts.max_length
        objective = replace(self.objective, content=content)
        found = objective.encode(split, source, length)
        rows.refuse_letters(content, split, found.rows, found)
        part = objective.for_evaluation(found.rows, source, length)
        agreement.check_rows(backbone.skeleton(source, objective.architecture), part, split, content)
        self.model.eval()
        try:
            loop = self._loop
            evaluator = Evaluator(loop.network, objective, loop.batches, self.config.train.eval_batch_size)
            return evaluator.predictions(part), part.examples, int(found.cut.sum())
        except NotFinite:
            raise RunFailed(f"{self.folder}: the model's outputs are not finite on these texts") from None

    def predictions(self, part: Rows) -> Predictions:
        """What the model as it is now makes of some of the run's own rows."""
        return self._loop.evaluator.predictions(part)

    @functools.cached_property
    def _loop(self) -> Loop:
        return assemble.loop(self.parts, self.model, self.scratch, self.device)


@contextlib.contextmanager
def opened(folder: str | os.PathLike[str], device: str | None = None) -> Iterator[Finished]:
    """The run in `folder`. device: in place of the run's own `machine.device`.

    Raises `ConfigError`, in one line, for a folder without a finished run, and for a run whose model, texts
    or config are not what they were.
    """
    folder = Path(folder)
    row = origin.find(folder, "").record
    config = _config(folder, row)
    place = assemble.device(device or config.machine.device)
    with assemble.apart(config), tempfile.TemporaryDirectory() as scratch:
        parts = assemble.check(config)
        model = assemble.load(parts)
        try:
            live.restore_weights(model, parts.variant, state_files.load(folder / ADAPTER))
        except state_files.CorruptState as error:
            raise ConfigError(f"{folder / ADAPTER.parent}: not what this run trained: {error}") from None
        yield Finished(folder, row, parts, model.eval(), place, Path(scratch))


def _config(folder: Path, row: Record) -> DictConfig:
    """The run's config; that it names the same run today says that model and texts are the same."""
    path = folder / record.CONFIG
    try:
        saved = OmegaConf.load(path)
        assert isinstance(saved, DictConfig) and {"variant", "task", "model"} <= saved.keys(), "it lacks a group"
        # A field that has come since the run was made has its default.
        config = OmegaConf.merge(OmegaConf.structured(Config), saved)
        assert isinstance(config, DictConfig)
        config.tracker = config.machine.judge = None  # of those who made the run
        config.init_from = None  # what it started from is in what it ended with
        run_config.validate(config)
        # As values first: what the config names is called where it is what the record says.
        started = {name: value for name, value in row.config.items() if name.startswith("init_from.")}
        bare = identities.identify(run_config.deciding(config), {}, run_config.defaults()).settings
        _compare(folder, bare, {name: value for name, value in row.config.items() if name in bare})
        now = identify(config, content(config) | started)
    except ConfigError:
        raise
    except (OSError, AssertionError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not the config of a run: {one_line(error)}") from None
    _compare(folder, now.settings, row.config)
    if row.run_id not in (now.run_id, now.earlier):  # by a setting that the record lacks
        raise ConfigError(f"{path}: the config of the run {now.run_id}, the record is that of {row.run_id}")
    return config


def _compare(folder: Path, found: Mapping[str, Any], made: Mapping[str, Any]) -> None:
    for name, was in sorted(made.items()):
        if found.get(name) != was:
            raise ConfigError(f"{folder}: {name} is {found.get(name)!r}, the run was made with {was!r}")
