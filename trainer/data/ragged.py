"""Rows of different lengths in one array."""

from __future__ import annotations

import numpy as np


class Ragged:
    """Rows of whole numbers of different lengths."""

    def __init__(self, numbers: np.ndarray, ends: np.ndarray) -> None:
        self.numbers = numbers
        self.ends = ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> list[int]:
        start = self.ends[row - 1] if row else 0
        found: list[int] = self.numbers[start : self.ends[row]].tolist()
        return found

    @property
    def lengths(self) -> np.ndarray:
        """Numbers in each row."""
        return np.diff(self.ends, prepend=0)
