"""Sounds and ratings that are computed, to try out kinds of task without data of one's own."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from typing import Any

from trainer.data.sources.columns import Row, rows_data, split_by_text
from trainer.data.sources.types import TaskData
from trainer.errors import ConfigError

RATE = 2_000  # samples a second
TONES = {"a": 100, "b": 300, "c": 600, "d": 900}  # Hz


@dataclass(frozen=True)
class Tones:
    """Letters as tones: which one is played (`label`), or which words (`text`). count: of sounds."""

    text: bool = False
    count: int = 240

    def load(self) -> TaskData:
        """Returns `audio`, and `label` or `text`, of train and validation."""
        draw = random.Random(0)
        names, rows = list(TONES), list[tuple[str, Row]]()
        for number in range(self.count):
            words = draw.randint(1, 3) if self.text else 1
            letters = [draw.choices(names, k=draw.randint(1, 3) if self.text else 1) for _ in range(words)]
            text = " ".join("".join(word) for word in letters)
            beside = {"text": text} if self.text else {"label": names.index(text)}
            key = f"{number} {text}"
            rows.append((key, {"id": f"{number:04}", "file": key, "audio": _played(text, draw), **beside}))
        return rows_data(split_by_text(rows, 0.2), "task.source", None if self.text else names)

    def identity(self) -> dict[str, str]:
        return {}


@dataclass(frozen=True)
class Tastes:
    """Ratings 1 to 5 of items by users with two tastes each; a third of all pairs is rated."""

    users: int = 24
    items: int = 24

    def __post_init__(self) -> None:
        if self.users < 2 or self.items < 2:
            raise ConfigError(f"task.source: {self.users} users and {self.items} items; allowed: two or more")

    def load(self) -> TaskData:
        """Returns `user`, `item` and `rating` of train and validation."""
        draw = random.Random(0)
        tastes, flavours = ([[draw.gauss(0, 1) for _ in range(2)] for _ in range(n)] for n in (self.users, self.items))
        rows = list[tuple[str, Row]]()
        for user, taste in enumerate(tastes):
            for item, flavour in enumerate(flavours):
                if draw.random() < 1 / 3:
                    value = 3 + sum(a * b for a, b in zip(taste, flavour, strict=True)) + draw.gauss(0, 0.3)
                    key = f"u{user} i{item}"
                    rating = float(min(5, max(1, round(value))))
                    rows.append((key, {"id": key, "user": f"u{user}", "item": f"i{item}", "rating": rating}))
        return rows_data(split_by_text(rows, 0.2), "task.source")

    def identity(self) -> dict[str, str]:
        return {}


def _played(text: str, draw: random.Random) -> bytes:
    """Returns a WAV file: 40 to 60 ms for each letter, a constant between words, and a bit of noise."""
    import numpy as np
    from scipy.io import wavfile

    parts: list[Any] = []
    for letter in text:
        times = np.arange(draw.randint(RATE // 25, RATE * 3 // 50)) / RATE
        tone = np.sin(2 * np.pi * TONES.get(letter, 0) * times + draw.random())
        parts += [tone, np.zeros(RATE // 50)]
    samples = np.concatenate(parts)
    samples = samples / 2 + np.random.default_rng(draw.randrange(2**32)).standard_normal(len(samples)) / 50
    file = io.BytesIO()
    wavfile.write(file, RATE, (samples.clip(-1, 1) * 32767).astype(np.int16))
    return file.getvalue()
