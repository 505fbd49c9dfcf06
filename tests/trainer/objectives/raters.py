"""Ratings of items by users with a taste each, and tiny models with random weights for them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from trainer.data.sources import two_tower as vocabularies
from trainer.model.two_tower import TwoTower, TwoTowerConfig

USERS, ITEMS = [f"u{number}" for number in range(12)], [f"i{number}" for number in range(16)]


def model(folder: Path, layers: int = 1, **settings: Any) -> Path:
    """A two-tower model in `folder`, and the names of its users and items."""
    torch.manual_seed(0)
    config = TwoTowerConfig(
        users=len(USERS), items=len(ITEMS), factors=8, layers=layers, initializer_range=0.3, mean=3.0
    )
    for name, value in settings.items():
        setattr(config, name, value)
    TwoTower(config).save_pretrained(folder)
    vocabularies.write(folder, USERS, ITEMS)
    return folder


def rows(share: float = 0.6) -> list[tuple[str, str, float]]:
    """Users of even number like items of even number, with 5 and 1 stars; each rates this share of the items."""
    draw = random.Random(0)
    found = []
    for user, _ in enumerate(USERS):
        for item, _ in enumerate(ITEMS):
            if draw.random() < share:
                likes = user % 2 == item % 2
                found.append((USERS[user], ITEMS[item], draw.choice([4.0, 5.0]) if likes else draw.choice([1.0, 2.0])))
    return found


def write(path: Path, ratings: list[tuple[str, str, float]] | None = None) -> Path:
    """A table of ratings."""
    lines = [",".join(map(str, row)) for row in (rows() if ratings is None else ratings)]
    path.write_text("\n".join(["user,item,rating", *lines]))
    return path
