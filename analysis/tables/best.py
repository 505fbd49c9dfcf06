"""Which entries of a column are the best ones, and which the second best."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple


class Marks(NamedTuple):
    """Places of the best entries, and of the second best."""

    best: frozenset[int] = frozenset()
    second: frozenset[int] = frozenset()

    def of(self, place: int) -> str:
        """`best`, `second`, or nothing."""
        return "best" if place in self.best else "second" if place in self.second else ""


NONE = Marks()


def mark(
    entries: Mapping[int, tuple[float, str]], groups: Iterable[Collection[int]], *, higher_is_better: bool
) -> Marks:
    """The marks of entries, (value, value as printed) by place, within each group.

    With the best go all that are printed with the same digits, since a reader can't tell them
    apart; the second best are the best of the others and their like. One entry is no best.
    """
    best: set[int] = set()
    second: set[int] = set()
    for group in groups:
        here = {place: entries[place] for place in group if place in entries}
        if len(here) < 2:
            continue
        top = _top(here, higher_is_better)
        best |= top
        second |= _top({place: entry for place, entry in here.items() if place not in top}, higher_is_better)
    return Marks(frozenset(best), frozenset(second))


def _top(entries: Mapping[int, tuple[float, str]], higher_is_better: bool) -> set[int]:
    if not entries:
        return set()
    value, text = (max if higher_is_better else min)(entries.values(), key=lambda entry: entry[0])
    return {place for place, entry in entries.items() if entry[0] == value or entry[1] == text}
