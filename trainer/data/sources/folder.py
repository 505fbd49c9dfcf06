"""The user's own model: a folder with the layout that `save_pretrained` writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.data.sources import layout
from trainer.data.sources.paths import expanded
from trainer.errors import ConfigError
from trainer.hashing import sha256


@dataclass(frozen=True)
class FolderModel:
    path: str

    def __post_init__(self) -> None:
        if self.path == "???":
            raise ConfigError("model.path: not given; allowed: a folder with config.json, weights and tokenizer")

    def __str__(self) -> str:
        return f"folder {self.path}"

    def fetch(self) -> Path:
        """Returns the folder after checking that its files look loadable. Raises `ConfigError`."""
        folder = expanded(self.path)
        if not folder.is_dir():
            raise ConfigError(f"model.path: {self.path!r} is not a folder")
        problem = layout.problem(folder)
        if problem is not None:
            raise ConfigError(f"model.path: {self.path!r}: {problem}")
        return folder

    def identity(self) -> dict[str, str]:
        """Returns the hashes of config.json, of the weights and of the tokenizer's files by file name."""
        folder = expanded(self.path)
        return {name: sha256(folder / name) for name in self.names()}

    def names(self) -> list[str]:
        """Returns the names of the files that determine what the model computes."""
        return layout.needed(path.name for path in self.fetch().iterdir())
