"""Finds the best and the second best entries of a column."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple


class Marks(NamedTuple):
    """The rows of the best and of the second best entries."""

    best: frozenset[int] = frozenset()
    second: frozenset[int] = frozenset()

    def of(self, row: int) -> str:
        """`best`, `second` or an empty text."""
        return "best" if row in self.best else "second" if row in self.second else ""


NONE = Marks()


def mark(
    entries: Mapping[int, tuple[float, str]], groups: Iterable[Collection[int]], *, higher_is_better: bool
) -> Marks:
    """The marks within each group of rows. entries: (value, value as printed) by row.

    Entries that print the same digits as the best are best too, because a reader can't distinguish them. The second
    best are the best of the rest, with ties. A single entry is never marked.
    """
    best: set[int] = set()
    second: set[int] = set()
    for group in groups:
        here = {row: entries[row] for row in group if row in entries}
        if len(here) < 2:
            continue
        top = _top(here, higher_is_better)
        best |= top
        second |= _top({row: entry for row, entry in here.items() if row not in top}, higher_is_better)
    return Marks(frozenset(best), frozenset(second))


def _top(entries: Mapping[int, tuple[float, str]], higher_is_better: bool) -> set[int]:
    if not entries:
        return set()
    value, text = (max if higher_is_better else min)(entries.values(), key=lambda entry: entry[0])
    return {row for row, entry in entries.items() if entry[0] == value or entry[1] == text}
