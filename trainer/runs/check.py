"""The runs of a sweep, checked before the first of them trains: what several have in common is looked at once.

A setting takes about a tenth of a second once its model and its texts are known; no weight is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig

from trainer import config as run_config
from trainer.errors import ConfigError
from trainer.runs import assemble

T = TypeVar("T")

INPUTS = 16  # that are held: rows and modules without weights


class Checks:
    """What has been found so far."""

    def __init__(self) -> None:
        self._virtual_tokens: dict[str, int] = {}  # by setting
        self._inputs: dict[str, assemble.Inputs] = {}
        self._fits: set[str] = set()
        self._refused: dict[str, ConfigError] = {}

    def check(self, config: DictConfig) -> None:
        """Raises `ConfigError` where the run of `config` can't be; see `assemble.check`."""
        parts = run_config.deciding(config)
        seed = parts.pop("seed")
        setting = _key([parts, config.machine.fsdp])
        with torch.random.fork_rng(devices=[]):
            if setting not in self._virtual_tokens:
                variant = self._once(f"settings {setting}", lambda: assemble.settings(config))
                self._virtual_tokens[setting] = variant.virtual_tokens()
            # The seed has a part in the rows where it draws them, and their number decides the number of steps.
            drawn = config.data.limit is not None or config.data.protocol == "split"
            rows = _key([*(parts[name] for name in ("task", "data", "model")), seed if drawn else None])
            inputs = self._read(config, self._virtual_tokens[setting], rows)
            if (fits := f"{len(inputs.rows.train)} rows {setting}") not in self._fits:
                self._once(fits, lambda: assemble.fit(config, assemble.settings(config), inputs))
                self._fits.add(fits)

    def _read(self, config: DictConfig, virtual_tokens: int, rows: str) -> assemble.Inputs:
        key = f"{virtual_tokens} places {rows}"
        if key not in self._inputs:
            found = self._once(key, lambda: assemble.read(config, virtual_tokens))
            if len(self._inputs) >= INPUTS:
                self._inputs.pop(next(iter(self._inputs)))
            self._inputs[key] = found
        return self._inputs[key]

    def _once(self, key: str, look: Callable[[], T]) -> T:
        """What `look` gives; an error that it raised for this key before is raised again."""
        if key in self._refused:
            raise self._refused[key]
        try:
            return look()
        except ConfigError as error:
            self._refused[key] = error
            raise


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
