"""No key, token or password of the user's may reach a run's folder or a terminal.

A key belongs in the environment or in the file where `wandb login` puts it; a config is copied into every
run's folder. What looks like a secret is known by the name of its environment variable, as in WANDB_API_KEY.
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
_SHORTEST = 8  # characters; a shorter value may be any word


def refuse(config: DictConfig) -> None:
    """Raises `ConfigError`, without the value, for a field that is meant for a secret or that holds one."""
    tracker = config.get("tracker")
    for name, _ in flatten(mapping(tracker, resolve=False) if isinstance(tracker, DictConfig) else {}):
        if _NAMES.fullmatch(name.rpartition(".")[2]):
            raise ConfigError(
                f"tracker.{name}: no setting for it, a config is copied into every run's folder; "
                "a key goes into the environment (WANDB_API_KEY) or to `wandb login`"
            )
    secrets = list(_secrets())
    if not secrets:
        return
    for name, value in flatten(mapping(config)):
        for variable, secret in secrets:
            if secret in str(value):
                raise ConfigError(f"{name}: holds the value of the environment variable {variable}, which stays secret")


def scrubbed(text: str) -> str:
    """The text with every secret of the environment blotted out."""
    for _, secret in _secrets():
        text = text.replace(secret, "***")
    return text


def _secrets() -> Iterator[tuple[str, str]]:
    for variable, value in os.environ.items():
        is_place = value.startswith(("/", "~", "."))  # of a file with a key, as in SSH_KEY
        if _NAMES.fullmatch(variable) and len(value) >= _SHORTEST and not is_place:
            yield variable, value
