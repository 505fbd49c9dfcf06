"""The main config with overrides: composed once for each choice of files, with the fields set in a copy of it."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer.config import register

CONF = Path(__file__).parents[1] / "conf"
NODES = ("variant", "task", "model")


def by_hydra(overrides: list[str]) -> DictConfig:
    """As train.py does it, in a tenth of a second."""
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides)


@functools.cache
def of_files(overrides: tuple[str, ...]) -> DictConfig:
    """`by_hydra` for overrides that choose files. It merges the nodes of plain files itself, in milliseconds."""
    plain = dict(group_and_node for text in overrides if (group_and_node := _plain(text)) is not None)
    rest = tuple(text for text in overrides if _plain(text) is None)
    # What is chosen twice is an error; an experiment and what is added or taken away may concern a node.
    twice = len(plain) + len(rest) < len(overrides)
    if not plain or twice or any(text.startswith(("+", "~", "experiment=")) for text in rest):
        return by_hydra(list(overrides))
    config = copy.deepcopy(of_files(rest))
    for group, node in plain.items():
        config[group] = copy.deepcopy(node)
    return config


@functools.cache
def _plain(text: str) -> tuple[str, DictConfig] | None:
    """Group and node of an override that chooses a file of nothing but its node; None for any other."""
    group, _, name = text.partition("=")
    path = CONF / group / f"{name}.yaml"
    return (group, node) if group in NODES and path.is_file() and (node := _node(path)) is not None else None


def _node(path: Path) -> DictConfig | None:
    """What a file, and a file beside it that it begins with, give their group; None where it is more than that."""
    if "# @package" in path.read_text():
        return None
    node = OmegaConf.load(path)
    assert isinstance(node, DictConfig)
    if "defaults" not in node:
        return node
    first, *others = node.pop("defaults")
    beside = path.with_name(f"{first}.yaml")
    if others != ["_self_"] or not beside.is_file() or (base := _node(beside)) is None:
        return None
    merged = OmegaConf.merge(base, node)
    assert isinstance(merged, DictConfig)
    return merged


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
        override = _parser().parse_override(text)
    except HydraException:
        return None
    name = override.key_or_group
    plain = override.type is OverrideType.CHANGE and override.package is None and not override.is_sweep_override()
    return (name, override.value()) if plain and not (CONF / name).is_dir() else None


@functools.cache
def _parser() -> OverridesParser:
    return OverridesParser.create()
