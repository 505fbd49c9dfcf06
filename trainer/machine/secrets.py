"""Keeps keys, tokens and passwords out of run folders and off the terminal.

A config is copied into every run's folder, so a key belongs in the environment or in the file of `wandb login`.
The value of an environment variable is a secret if its name says so, as in WANDB_API_KEY.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from omegaconf import DictConfig

from trainer.errors import ConfigError
from trainer.identity import flatten
from trainer.plain import mapping

_NAMES = re.compile(r"(.*_)?(key|token|secret|password|credentials)", re.IGNORECASE)
_SHORTEST = 8  # characters; a shorter value could be an ordinary word


def refuse(config: DictConfig) -> None:
    """Raises `ConfigError`, without the value, for a field that is named like a secret or contains one."""
    tracker = config.get("tracker")
    for name, _ in flatten(mapping(tracker, resolve=False) if isinstance(tracker, DictConfig) else {}):
        if _NAMES.fullmatch(name.rpartition(".")[2]):
            raise ConfigError(
                f"tracker.{name}: no such setting, because a config is copied into every run's folder; "
                "put a key into the environment (WANDB_API_KEY) or use `wandb login`"
            )
    secrets = list(_secrets())
    if not secrets:
        return
    for name, value in flatten(mapping(config)):
        for variable, secret in secrets:
            if secret in str(value):
                raise ConfigError(f"{name}: holds the value of the environment variable {variable}, which stays secret")


def scrubbed(text: str) -> str:
    """The text with every secret of the environment replaced by ***."""
    for _, secret in _secrets():
        text = text.replace(secret, "***")
    return text


def _secrets() -> Iterator[tuple[str, str]]:
    for variable, value in os.environ.items():
        is_path = value.startswith(("/", "~", "."))  # of a file with a key, as in SSH_KEY
        if _NAMES.fullmatch(variable) and len(value) >= _SHORTEST and not is_path:
            yield variable, value
