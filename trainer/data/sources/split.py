"""Splits that depend on the texts' content alone, so that no duplicate is in two of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import TYPE_CHECKING

from trainer.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np


def normalised(text: str) -> str:
    """Folds case and white space; texts with equal results are duplicates."""
    return " ".join(text.split()).casefold()


def digest(*texts: str) -> str:
    """Returns a hexadecimal hash of the normalised texts; it serves as an id and as a pseudo-random order."""
    return hashlib.sha256("\0".join(normalised(text) for text in texts).encode()).hexdigest()


def held_out(text: str, share: float) -> bool:
    """Whether a text belongs to the held-out fraction `share` (0 to 1) of all texts.

    The result depends on this text alone, not on other texts, their order or the machine.
    """
    return int(digest(text)[:16], 16) / 2**64 < share


def refuse_empty(splits: Mapping[str, Sized], texts: Iterable[str], share: float) -> None:
    """Raises `ConfigError` if the fraction `share` of the user's `texts` leaves a split without rows."""
    for name, rows in splits.items():
        if not len(rows):
            count = len(set(map(normalised, texts)))
            raise ConfigError(
                f"task.source.holdout: {share} of {count} different texts leaves none for {name};"
                " allowed: a fraction that leaves some, or a file as task.source.validation_path"
            )


def groups(columns: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns the group number of each row, shape (n,). columns: the texts, or the first and the second texts.

    A group is a connected component: rows with a common text, in any columns, are connected. Empty texts connect no
    rows.
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
    components: np.ndarray = connected_components(links, directed=False)[1][:count]
    return components
