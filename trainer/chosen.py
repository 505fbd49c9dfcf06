"""`${chosen:FILE,METHOD,TASK}` in a config: the value that `python -m analysis choose` wrote for them into FILE.

A study tunes each method on each task first; the runs that it reports take their rates from that file, so that no
rate is copied by hand. The run's name hashes the value, not the file.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from trainer.errors import ConfigError, did_you_mean
from variants.core.placement import typed


def register() -> None:
    """Registers the resolver with OmegaConf."""
    OmegaConf.register_new_resolver("chosen", chosen, replace=True)


def chosen(file: str, method: str, task: str) -> float:
    """The value for a method on a task. file: relative to the working directory. Raises `ConfigError`."""
    path = Path(file)
    try:
        choices = _choices(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise ConfigError(f"chosen: {file}: {error.strerror or error}") from None
    for name, part in (("task", task), ("method", method)):
        if part not in choices:
            allowed = ", ".join(map(str, choices)) or "none"
            raise ConfigError(f"chosen: no {name} {part!r} in {file}, allowed: {allowed}{did_you_mean(part, choices)}")
        choices = choices[part]
    value = choices.get("value")
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ConfigError(f"chosen: {file}: choices.{task}.{method}.value: {value!r}, allowed: a number")
    return value


@functools.lru_cache(8)
def _choices(path: Path, _changed: int) -> dict[str, Any]:
    """The choices of a file. _changed: its time of change, so that another text is read again."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        choices: dict[str, Any] = content["choices"]
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError):
        raise ConfigError(f"chosen: {path}: not written by `{typed('python -m analysis choose')}`") from None
    return choices
