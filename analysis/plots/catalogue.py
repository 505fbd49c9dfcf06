"""The kinds of figures, and all pictures that runs allow. Importing it does not import matplotlib."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.plots.kind import Kind, LeftOut, Picture, Study

# In the order in which they are drawn. Written out, so that `--help` does not load matplotlib.
NAMES = (
    *("metric-seeds", "metric-parameters", "metric-memory", "metric-time", "metric-rate", "learning-curves"),
    *("rank-map", "rank-total", "rank-over-time", "sparsity-pattern", "sparsity-overlap", "delta-spectrum"),
    *("metric-kept-rank", "memory", "subspace-similarity"),
)


def kinds(only: Iterable[str] = NAMES) -> list[Kind]:
    """The kinds of figures with these names."""
    # Here, so that a table does not wait for matplotlib.
    from analysis.plots import (
        costs,
        curves,
        kept_rank,
        memory,
        rank_map,
        rank_time,
        rates,
        scores,
        sparsity,
        spectrum,
        subspaces,
    )

    modules = (scores, costs, rates, curves, rank_map, rank_time, sparsity, spectrum, kept_rank, memory, subspaces)
    return [kind for module in modules for kind in module.KINDS if kind.name in set(only)]


def pictures(study: Study, only: Iterable[str] = NAMES) -> Iterator[tuple[Kind, Picture | LeftOut]]:
    """All that can be drawn of a study, and what can't, kind by kind. No two pictures have one name."""
    from dataclasses import replace

    from analysis.plots.kind import Picture

    taken: dict[str, int] = {}
    for kind in kinds(only):
        for item in kind.pictures(study):
            if isinstance(item, Picture):
                # File systems that don't tell A from a would lose one of two.
                number = taken[item.name.casefold()] = taken.get(item.name.casefold(), 0) + 1
                item = item if number == 1 else replace(item, name=f"{item.name}-{number}")
            yield kind, item
