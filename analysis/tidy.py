"""A table as csv: one row for each row and task, exact numbers, no prose."""

from __future__ import annotations

import csv
import io

from analysis.grid import COSTS, Grid, mean_costs
from analysis.numbers import exact

HEADER = (
    "variant",
    "settings",  # what tells the row apart from others of its variant
    "model",
    "task",
    "metric",
    "checkpoint",
    "split",
    "protocol",
    "higher_is_better",
    "n",
    "failed",
    "mean",  # as measured: never ×100
    "sd",  # ddof 1
    "seeds",  # of the n runs, a space between
    *(cost.key for cost in COSTS),  # means over the n runs; bytes, seconds
)


def render(grid: Grid) -> str:
    """The whole file; a task without done runs has n = 0 and blanks."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(HEADER)
    for row, line in zip(grid.rows, grid.cells, strict=True):
        for column, cell in zip(grid.columns, line, strict=True):
            # The runs of a cell have one metric and one protocol, or they would be several rows.
            metric = cell.runs[0].record.metric if cell.runs else None
            higher = metric.higher_is_better if metric else None
            writer.writerow(
                [
                    row.variant,
                    row.settings,
                    row.model,
                    column.task,
                    metric.name if metric else None,
                    metric.checkpoint if metric else None,
                    metric.split if metric else None,
                    cell.runs[0].record.data.protocol if cell.runs else None,
                    "" if higher is None else str(higher).lower(),
                    cell.n,
                    cell.failed,
                    exact(cell.mean),
                    exact(cell.sd),
                    " ".join(str(run.record.seed) for run in cell.runs),
                    *map(exact, mean_costs(cell.runs)),
                ]
            )
    return file.getvalue()
