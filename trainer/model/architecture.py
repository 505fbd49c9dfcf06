"""Names the class of transformers that loads a model's files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """auto: the name of a class `AutoModelFor…` of transformers. outputs: of the head; None without a head.

    tokens: whether the model reads token ids.
    """

    auto: str
    outputs: int | None = None
    tokens: bool = True
