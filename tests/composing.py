"""The main config with overrides: composed once for each choice of files, with the fields set in a copy of it."""

from __future__ import annotations

import copy
import functools
import re
from dataclasses import dataclass
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
GROUPS = (*NODES, "experiment", "paper")  # in the order in which their settings take precedence


def by_hydra(overrides: list[str]) -> DictConfig:
    """As train.py does it, in a tenth of a second."""
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides)


@dataclass(frozen=True)
class Chosen:
    """What a file gives the config: nodes in the place of others, and settings that are merged over all nodes."""

    group: str
    nodes: dict[str, DictConfig]
    settings: DictConfig


@functools.cache
def of_files(overrides: tuple[str, ...]) -> DictConfig:
    """`by_hydra` for overrides that choose files. It merges those whose form it knows itself, in milliseconds."""
    files = [file for text in overrides if (file := chosen(text)) is not None]
    rest = tuple(text for text in overrides if chosen(text) is None)
    # What is chosen twice is an error or decided by Hydra; what is added or taken away may concern a node.
    groups = [group for file in files for group in {file.group, *file.nodes}]
    if not files or len(set(groups)) < len(groups) or any(text.startswith(("+", "~", "experiment=")) for text in rest):
        return by_hydra(list(overrides))
    config = copy.deepcopy(of_files(rest))
    for file in files:
        for group, node in file.nodes.items():
            config[group] = copy.deepcopy(node)
    OmegaConf.set_struct(config, False)
    for file in sorted(files, key=lambda file: GROUPS.index(file.group)):
        config.merge_with(file.settings)
    OmegaConf.set_struct(config, True)
    return config


@functools.cache
def chosen(text: str) -> Chosen | None:
    """What the file that an override chooses gives, where its form is known; None for any other override."""
    group, _, name = text.removeprefix("+" if text.startswith("+paper=") else "").partition("=")
    path = CONF / group / f"{name}.yaml"
    if group not in GROUPS or not path.is_file():
        return None
    if "# @package _global_" not in path.read_text():
        node = _node(path)
        return Chosen(group, {group: node}, OmegaConf.create()) if node is not None and group in NODES else None
    settings = OmegaConf.load(path)
    assert isinstance(settings, DictConfig)
    settings.pop("hydra", None)
    nodes = {group: OmegaConf.create()} if group in NODES else {}
    for entry in settings.pop("defaults", []):
        if entry != "_self_":
            chooses = _node_of(entry)
            if chooses is None or chooses[0] not in NODES:
                return None
            nodes[chooses[0]] = chooses[1]
    return Chosen(group, nodes, settings)


def _node_of(entry: Any) -> tuple[str, DictConfig] | None:
    """Group and node that an entry of a list of defaults chooses: /GROUP/NAME@GROUP or override /GROUP: NAME."""
    if isinstance(entry, str):
        found = re.fullmatch(r"/(\w+)/([\w/]+)@\1", entry)
        group, name = found.groups() if found else ("", "")
    else:
        ((key, name),) = entry.items()
        group = key.removeprefix("override /")
    path = CONF / group / f"{name}.yaml"
    return (group, node) if path.is_file() and (node := _node(path)) is not None else None


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
