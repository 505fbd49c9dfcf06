"""Phrases that notes share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from analysis.text.sorting import natural

MOST_NAMES = 10  # of a list that is a detail; failures and untrusted records are never cut


def runs(count: int) -> str:
    """`1 run`, `2 runs`."""
    return "1 run" if count == 1 else f"{count} runs"


def names(everything: Iterable[Any], most: int = MOST_NAMES) -> str:
    """`a, b, c and 4 more`, as a person sorts them."""
    ordered = sorted(everything, key=lambda name: natural(str(name)))
    more = len(ordered) - most
    return ", ".join(map(str, ordered[:most])) + (f" and {more} more" if more > 0 else "")
