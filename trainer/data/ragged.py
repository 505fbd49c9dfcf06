"""Rows of different lengths in one array."""

from __future__ import annotations

import numpy as np


class Ragged:
    """Rows of integers of different lengths, stored one after another.

    numbers: the integers of all rows. ends: for each row the index in `numbers` after its last one.
    """

    def __init__(self, numbers: np.ndarray, ends: np.ndarray) -> None:
        self.numbers = numbers
        self.ends = ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> list[int]:
        start = self.ends[row - 1] if row else 0
        numbers: list[int] = self.numbers[start : self.ends[row]].tolist()
        return numbers

    @property
    def lengths(self) -> np.ndarray:
        """The number of integers in each row, shape (rows,)."""
        return np.diff(self.ends, prepend=0)
