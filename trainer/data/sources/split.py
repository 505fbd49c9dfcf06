"""Splits that are fixed by what the texts say, so that no duplicate is in two of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


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


def groups(columns: Sequence[Sequence[str]]) -> np.ndarray:
    """For each row the number of its group, shape (n,). `columns` are its texts, or its first and its second ones.

    Rows with a text in common, in whichever column, are in one group, and so are all that others connect. An empty
    text connects nothing: it says nothing.
    """
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(columns[0])
    numbers: dict[str, int] = {}
    rows, texts = [], []
    for column in columns:
        for row, text in enumerate(column):
            if key := normalised(text):
                rows.append(row)
                texts.append(count + numbers.setdefault(key, len(numbers)))
    size = count + len(numbers)
    links = coo_array((np.ones(len(rows), dtype=bool), (rows, texts)), shape=(size, size))
    found: np.ndarray = connected_components(links, directed=False)[1][:count]
    return found
