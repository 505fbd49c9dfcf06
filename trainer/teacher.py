"""What a run learns from beside its rows, `train.teacher`: a finished run, or a folder of a model. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from trainer import origin
from trainer.data.sources.folder import FolderModel
from trainer.data.sources.paths import expanded
from trainer.errors import ConfigError
from trainer.origin import Origin

FIELD = "train.teacher"
TEMPERATURE, WEIGHT = 2.0, 0.5  # where the config has null


@dataclass(frozen=True)
class Teacher:
    """run: None if `folder` is a model's."""

    folder: Path
    run: Origin | None

    def identity(self) -> dict[str, Any]:
        """Its part in the identity of a run that learns from it: hashes, and no path."""
        return FolderModel(str(self.folder)).identity() if self.run is None else self.run.identity()


def find(given: str) -> Teacher:
    """The teacher in a folder. Raises `ConfigError` unless it is a finished run, or a model that can be loaded."""
    folder = expanded(given)
    if not (folder / "config.json").is_file():
        return Teacher(folder, origin.find(given, f"{FIELD}: "))
    try:
        FolderModel(given).fetch()
    except ConfigError as error:
        raise ConfigError(str(error).replace("model.path", FIELD, 1)) from None
    return Teacher(folder, None)


def refuse_alone(config: DictConfig) -> None:
    """Raises `ConfigError` for settings of a teacher without one."""
    for name in ("temperature", "distillation_weight"):
        if config.train[name] is not None and config.train.teacher is None:
            raise ConfigError(f"train.{name}: {config.train[name]} without {FIELD}, allowed: null")
