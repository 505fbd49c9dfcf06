"""Config nodes as plain Python."""

from __future__ import annotations

from typing import Any, cast

from omegaconf import DictConfig, OmegaConf


def mapping(node: DictConfig, resolve: bool = True) -> dict[str, Any]:
    """A node with fields as nested dicts, lists and values. `trainer.config_checks` ensures that its keys are text."""
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=resolve))
