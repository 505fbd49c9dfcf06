"""Settings that stand for all combinations of them: any two values occur together in one."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any


def covering(values: Mapping[str, Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Combinations, one value of each name in the order of the names, in which every pair of values occurs together.

    A fault that depends on two values shows in one of them; one that takes three may not. The first combination that
    covers the most pairs that are still open is taken next, so the list is always the same.
    """
    names = list(values)
    pairs = list(itertools.combinations(range(len(names)), 2))
    rows = list(itertools.product(*(range(len(values[name])) for name in names)))
    of = [{(i, row[i], j, row[j]) for i, j in pairs} for row in rows]
    left, chosen = set().union(*of), []
    while left:
        best = max(range(len(rows)), key=lambda number: len(of[number] & left))
        left -= of[best]
        chosen.append(tuple(values[name][place] for name, place in zip(names, rows[best], strict=True)))
    return chosen
