"""Which of transformers' classes the files of a model are loaded as."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """auto: the name of one of transformers' classes `AutoModelFor…`. outputs: of the head, None for one without.

    tokens: whether it reads what a tokenizer makes.
    """

    auto: str
    outputs: int | None = None
    tokens: bool = True
