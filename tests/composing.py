"""The main config with overrides: composed once for each choice of files, with the fields set in a copy of it."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer.config import register
from trainer.sweeps import sweep

CONF = Path(__file__).parents[1] / "conf"


def by_hydra(overrides: list[str]) -> DictConfig:
    """As train.py does it, in a tenth of a second."""
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides)


@functools.cache
def of_files(overrides: tuple[str, ...]) -> DictConfig:
    """`by_hydra` for overrides that choose files."""
    return by_hydra(list(overrides))


def composed(overrides: list[str]) -> DictConfig:
    """The same, or the same error, in milliseconds where files were chosen like this before."""
    if any(text.startswith(("hydra", "+hydra", "~hydra")) for text in overrides):
        return by_hydra(overrides)
    config = copy.deepcopy(of_files(tuple(text for text in overrides if field(text) is None)))
    try:
        for text in overrides:
            if (found := field(text)) is not None:
                OmegaConf.update(config, *found, merge=True)
    except OmegaConfBaseException:
        return by_hydra(overrides)  # which says what is wrong as a user reads it
    return config


@functools.cache
def field(text: str) -> tuple[str, Any] | None:
    """Name and value where an override gives one field a value; None where it chooses a file, adds or takes away."""
    try:
        return sweep.field(_parser(), text, lambda key: (CONF / key).is_dir())
    except HydraException:
        return None


@functools.cache
def _parser() -> OverridesParser:
    return OverridesParser.create()
