"""Before a sweep starts: `N runs: a done, b failed, c to do`."""

from __future__ import annotations

import logging
import sys
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from trainer import launch
from trainer.errors import ConfigError
from trainer.plan import plan

log = logging.getLogger(__name__)

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


class Plan(Callback):
    """Hydra's callback: composes the jobs of a multirun and says how many are done."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _refuse_several_processes(config.hydra)
        if config.hydra.sweeper._target_ != BASIC:
            return  # a search decides its runs as it goes
        done = failed = left = 0
        for job in jobs(config):
            try:
                run = plan(job)
            except ConfigError:
                left += 1  # says why when its turn comes
                continue
            done, failed, left = done + run.done, failed + run.failed, left + (run.record is None)
        again = " (failed runs are tried again)" if failed else ""
        log.info("%d runs: %d done, %d failed, %d to do%s", done + failed + left, done, failed, left, again)


def _refuse_several_processes(hydra: DictConfig) -> None:
    """Ends the process where others that were started with it would go through other runs.

    Hydra turns the errors of a callback into warnings, and so this is no `ConfigError`.
    """
    if launch.this().count == 1:
        return
    for part, allowed in (("sweeper", BASIC), ("launcher", LAUNCHER)):
        if (found := hydra[part]._target_) != allowed:
            name = found.rpartition(".")[2]
            sys.exit(f"error: hydra/{part}: {name} in several processes for one run, allowed: basic")


def jobs(config: DictConfig) -> list[DictConfig]:
    """The configs that a multirun will go through, in its order; none where one can't be composed."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    loader = GlobalHydra.instance().config_loader()
    params = config.hydra.sweeper.params or {}
    texts = [f"{key}={value}" for key, value in params.items()] + list(config.hydra.overrides.task)
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(texts)
    (batch,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    try:
        composed = [loader.load_sweep_config(config, list(job)) for job in batch]
    except (HydraException, OmegaConfBaseException):
        return []  # the sweeper is about to fail with this error
    for job in composed:
        with read_write(job), open_dict(job):
            del job["hydra"]  # as Hydra does before it hands a config to the run
    return composed
