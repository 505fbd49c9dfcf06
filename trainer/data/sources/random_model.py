"""A model of transformers with random weights, made from its settings: to try out a kind of task without a download."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.data.sources import cache
from trainer.errors import ConfigError


@dataclass(frozen=True)
class RandomModel:
    """architecture: a class of transformers, or the dotted path of one like these. settings: of its config.

    seed: of the weights, which are the same for every run.
    beside: the JSON files of its tokenizer or processor, by name.
    """

    architecture: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seed: int = 0

    def __str__(self) -> str:
        return f"a random {self.architecture}"

    def fetch(self) -> Path:
        """Returns a folder of the cache with the model as `save_pretrained` writes it. Raises `ConfigError`."""

        def build(folder: Path) -> None:
            import torch

            from trainer.model.foreign import reading

            module, _, name = self.architecture.rpartition(".")
            try:
                cls: Any = getattr(importlib.import_module(module or "transformers"), name, None)
            except ImportError:
                cls = None
            if getattr(cls, "config_class", None) is None:
                raise ConfigError(
                    f"model.sources.architecture: {self.architecture!r}, allowed: a model of transformers"
                )
            with reading("its settings"), torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                cls(cls.config_class(**self.settings)).save_pretrained(folder)
            for name, content in self.beside.items():
                (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

        return cache.entry(f"random/{self.identity()['settings'][:32]}", build)

    def identity(self) -> dict[str, str]:
        """Returns the hash of all that determines the folder, versions of packages apart."""
        content = [self.architecture, self.settings, self.beside, self.seed]
        return {"settings": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}
