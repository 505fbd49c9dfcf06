"""Splits that are fixed by what the texts say, so that no duplicate is in two of them."""

from __future__ import annotations

import hashlib


def normalised(text: str) -> str:
    """`text` with case and the kind and amount of white space folded away: equal means duplicate."""
    return " ".join(text.split()).casefold()


def digest(*texts: str) -> str:
    """A hash of normalised texts in hex: their identity, and an order that has to do with nothing else."""
    return hashlib.sha256("\0".join(normalised(text) for text in texts).encode()).hexdigest()


def held_out(text: str, share: float) -> bool:
    """Whether a text belongs to the held-out `share` (0 to 1) of all texts.

    It depends on this text alone: more texts, another order or another machine change nothing.
    """
    return int(digest(text)[:16], 16) / 2**64 < share
