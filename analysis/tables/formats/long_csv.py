"""Formats a table as csv in long form: one line for each row and task, with all digits."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from analysis.records import settings
from analysis.tables import costs
from analysis.tables.averages import Averages, Ranks
from analysis.tables.cells import Grid, budgets
from analysis.tables.published import Paper
from analysis.text.formulas import inert
from analysis.text.numbers import exact, magnitude

HEADER = (
    "variant",
    "settings",  # distinguish the row from others of its variant
    "budget",  # config.variant.budget
    "published",  # the set of a published row; blank for runs
    "model",
    "task",
    "metric",
    "checkpoint",
    "split",
    "protocol",
    "higher_is_better",
    "n",
    "failed",
    "mean",  # as measured, never ×100
    "sd",  # ddof 1
    "seeds",  # of the n runs, separated by spaces
    "average",  # over tasks, the same in every line of a row; its sd and n are over seeds
    "average_sd",
    "average_n",
    "average_rank",
    *(cost.key for cost in costs.COSTS),  # means over the n runs; bytes, seconds
)


def render(
    grid: Grid, averages: Averages, ranks: Ranks, papers: Sequence[Paper] = (), *, by_group: bool = False
) -> str:
    """The whole file. A task without done runs has n = 0 and blanks. by_group: whether lines are sorted by groups."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HEADER, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    by_name = range(len(grid.rows))
    for row in itertools.chain(*(group.rows for group in grid.groups)) if by_group else by_name:
        writer.writerows(map(_inert, _lines(grid, averages, ranks, row)))
    for paper in papers:
        writer.writerows(map(_inert, _published(grid, paper)))
    return text.getvalue()


def _inert(line: dict[str, Any]) -> dict[str, Any]:
    return {name: inert(value) for name, value in line.items()}


def _lines(grid: Grid, averages: Averages, ranks: Ranks, index: int) -> Iterator[dict[str, Any]]:
    row, average, rank = grid.rows[index], averages.spreads[index], ranks.means[index]
    shared: dict[str, Any] = {
        "variant": row.variant,
        "settings": row.settings,
        "budget": " ".join(settings.text(budget) for budget in budgets(row) if budget is not None),
        "model": row.model,
        "average_rank": exact(rank),
    }
    if average is not None:
        shared |= {"average": exact(average.mean), "average_sd": exact(average.sd), "average_n": average.n or ""}
    for column, cell in zip(grid.columns, grid.cells[index], strict=True):
        line = shared | {"task": column.task, "n": cell.n, "failed": cell.failed}
        if cell.spread is not None:
            metric, checkpoint, split, higher, protocol, *_ = cell.protocol
            line |= {
                "metric": metric,
                "checkpoint": checkpoint,
                "split": split,
                "protocol": protocol,
                "higher_is_better": "" if higher is None else str(higher).lower(),
                "mean": exact(cell.spread.mean),
                "sd": exact(cell.spread.sd),
                "seeds": " ".join(map(str, cell.seeds)),
            }
            line |= {cost.key: exact(cell.costs.of(cost)) for cost in costs.COSTS}
        yield line


def _published(grid: Grid, paper: Paper) -> Iterator[dict[str, Any]]:
    for row in paper.rows:
        for column in grid.columns:
            value, index = paper.value(row, column), paper.index(column)
            if value and index is not None:
                yield {
                    "variant": row.label,
                    "published": paper.name,
                    "task": column.task,
                    "metric": paper.metrics[column.task][index],
                    "mean": exact(round(float(value) / 100, 6)),
                    "trainable_start": exact(magnitude(row.parameters)) if row.parameters else "",
                }
