"""Config nodes as plain Python."""

from __future__ import annotations

from typing import Any, cast

from omegaconf import DictConfig, OmegaConf


def mapping(node: DictConfig, resolve: bool = True) -> dict[str, Any]:
    """A node with fields as a dict of dicts, lists and values. That its keys are text is checked with the config."""
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=resolve))
