"""A model of ratings from scratch, with the users and items of a table: see `trainer.model.two_tower`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.data.sources import cache
from trainer.data.sources.classes import class_order
from trainer.data.sources.ratings import columns
from trainer.errors import ConfigError

VOCABULARY = "preprocessor_config.json"


@dataclass(frozen=True)
class NewTwoTower:
    """ratings_path: the table whose users and items the model has, in the columns user and item.

    factors, layers, mean: see `TwoTowerConfig`. seed: of the drawn weights, which are the same for every run.
    """

    ratings_path: str
    user: str = "user"
    item: str = "item"
    factors: int = 16
    layers: int = 0
    mean: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ratings_path == "???":
            raise ConfigError("model.ratings_path: not given; allowed: a table of users and items")
        for name, least in (("factors", 1), ("layers", 0), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"model.{name}: {value!r}, allowed: a whole number ≥ {least}")

    def __str__(self) -> str:
        return f"a new model for {self.ratings_path}"

    def fetch(self) -> Path:
        """Returns a folder of the cache with the model as `save_pretrained` writes it. Raises `ConfigError`."""
        settings = {name: value for name, value in asdict(self).items() if name not in ("ratings_path", "user", "item")}
        key = hashlib.sha256(f"{self.identity()} {sorted(settings.items())}".encode()).hexdigest()[:32]

        def build(folder: Path) -> None:
            import torch

            from trainer.model.two_tower import TwoTower, TwoTowerConfig

            users, items = self._names()
            sizes = {name: value for name, value in settings.items() if name != "seed"}
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                TwoTower(TwoTowerConfig(users=len(users), items=len(items), **sizes)).save_pretrained(folder)
            write(folder, users, items)

        return cache.entry(f"two_tower/{key}", build)

    def identity(self) -> dict[str, str]:
        """Returns the hash of the users and items."""
        users, items = self._names()
        return {"vocabulary": hashlib.sha256(json.dumps([users, items]).encode()).hexdigest()}

    def _names(self) -> tuple[list[str], list[str]]:
        users, items = columns(self.ratings_path, (self.user, self.item), "model.ratings_path")
        return class_order(users), class_order(items)


def write(folder: Path, users: list[str], items: list[str]) -> None:
    """Writes which user and which item has which number."""
    (folder / VOCABULARY).write_text(json.dumps({"users": users, "items": items}, ensure_ascii=False), encoding="utf-8")


def read(folder: Path) -> tuple[list[str], list[str]]:
    """Returns users and items by number. Raises `ConfigError` for a model without them."""
    try:
        found = json.loads((folder / VOCABULARY).read_text(encoding="utf-8"))
        users, items = found["users"], found["items"]
        named = all(isinstance(name, str) for name in (*users, *items))
    except (OSError, ValueError, KeyError, TypeError):
        named = False
    if not named:
        raise ConfigError(
            f"model: its {VOCABULARY} has no users and items; allowed: a model of ratings, as model=two_tower and what "
            "is exported of its runs"
        )
    return users, items
