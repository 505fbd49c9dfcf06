"""Checks the runs of a sweep before the first one trains; what several runs share is checked once.

A setting takes about a tenth of a second once its model and texts are known. No weight is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig

from trainer import config as run_config
from trainer.errors import ConfigError
from trainer.runs import assemble, teaching

T = TypeVar("T")

INPUTS = 16  # the most `assemble.Inputs` (rows, modules without weights) that are held


class Checks:
    """Checks runs and remembers the results."""

    def __init__(self) -> None:
        self._virtual_tokens: dict[str, int] = {}  # by setting
        self._inputs: dict[str, assemble.Inputs] = {}
        self._fits: set[str] = set()
        self._refused: dict[str, ConfigError] = {}

    def check(self, config: DictConfig) -> None:
        """Raises `ConfigError` if the run of `config` can't start; see `assemble.check`."""
        groups = run_config.deciding(config)
        seed = groups.pop("seed")
        setting = _key([groups, config.machine.fsdp, config.train.teacher])
        with torch.random.fork_rng(devices=[]):
            if setting not in self._virtual_tokens:
                variant = self._once(f"settings {setting}", lambda: assemble.settings(config))
                self._virtual_tokens[setting] = variant.virtual_tokens()
            # The rows depend on the seed if it draws them, and their number determines the number of steps.
            drawn = config.data.limit is not None or config.data.protocol == "split"
            rows = _key([*(groups[name] for name in ("task", "data", "model")), seed if drawn else None])
            inputs = self._read(config, self._virtual_tokens[setting], rows)
            if (fits := f"{len(inputs.rows.train)} rows {setting}") not in self._fits:
                self._once(fits, lambda: teaching.check(assemble.fit(config, assemble.settings(config), inputs)))
                self._fits.add(fits)

    def _read(self, config: DictConfig, virtual_tokens: int, rows: str) -> assemble.Inputs:
        key = f"{virtual_tokens} positions {rows}"
        if key not in self._inputs:
            inputs = self._once(key, lambda: assemble.read(config, virtual_tokens))
            if len(self._inputs) >= INPUTS:
                self._inputs.pop(next(iter(self._inputs)))
            self._inputs[key] = inputs
        return self._inputs[key]

    def _once(self, key: str, make: Callable[[], T]) -> T:
        """Returns the result of `make`; raises the error again that it raised for this key before."""
        if key in self._refused:
            raise self._refused[key]
        try:
            return make()
        except ConfigError as error:
            self._refused[key] = error
            raise


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
