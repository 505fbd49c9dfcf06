"""Phrases for notes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from analysis.text.sorting import natural

MOST_NAMES = 10  # of a long list; failures and untrusted records are never truncated


def runs(count: int) -> str:
    """`1 run`, `2 runs`."""
    return "1 run" if count == 1 else f"{count} runs"


def names(everything: Iterable[Any], most: int = MOST_NAMES) -> str:
    """`a, b, c and 4 more`, in natural order."""
    ordered = sorted(everything, key=lambda name: natural(str(name)))
    more = len(ordered) - most
    return ", ".join(map(str, ordered[:most])) + (f" and {more} more" if more > 0 else "")


def shortened(text: str, most: int) -> str:
    """`text` in at most `most` characters; a longer one is truncated and gets a hash."""
    if len(text) <= most:
        return text
    import hashlib  # imported here, because few tables need it

    return f"{text[: most - 7]}…{hashlib.sha256(text.encode()).hexdigest()[:6]}"
