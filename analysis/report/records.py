"""Encodes all records by columns, for the browser's table of runs and the page of each run.

Most columns have few distinct values, each of which is written once and referenced by number. So ten thousand records
take a few megabytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from analysis.records import columns
from analysis.records.runs import Run, RunSet
from analysis.report import repeat
from analysis.tables.rows import Rows
from variants.core.placement import typed

_EXACT = 2**53  # the largest whole number that JavaScript represents exactly


def order(runs: RunSet, rows: Rows) -> list[Run]:
    """All runs, sorted by row of the table, task and seed."""
    first = {run_id: indices[0] for run_id, indices in _rows_of(rows).items()}
    tasks = {task: index for index, task in enumerate(rows.tasks)}
    everything = [*runs.done, *runs.failed]

    def key(run: Run) -> tuple[int, int, int, str]:
        record = run.record
        return first[record.run_id], tasks[record.task], record.seed, record.run_id

    return sorted(everything, key=key)


def build(runs: Sequence[Run], rows: Rows, fractions: dict[str, bool]) -> dict[str, Any]:
    """The runs in this order, as JSON for the browser. fractions: by metric, whether it is printed ×100."""
    rows_of = _rows_of(rows)
    values: dict[str, list[Any]] = {}
    for number, run in enumerate(runs):
        for name, value in run.record.row().items():
            if name not in values:
                values[name] = [None] * len(runs)
            values[name][number] = value
    return {
        "count": len(runs),
        "fields": {name: encode(values[name]) for name in sorted(values, key=columns.sort_key)},
        "folder": [run.path for run in runs],
        "train": typed("python train.py"),
        "repeat": {
            number: texts
            for number, run in enumerate(runs)
            if (texts := repeat.overrides(run.record, Path(run.folder)))
        },
        "foreign": [number for number, run in enumerate(runs) if repeat.is_foreign(run.record)],
        "row": encode([rows_of[run.record.run_id] for run in runs]),
        "rows": [row.label for row in rows.rows],
        "fractions": sorted(name for name, fraction in fractions.items() if fraction),
    }


def encode(values: Sequence[Any]) -> dict[str, Any]:
    """A column: `same` if all values are equal, or `pool` with indices `at`, or `all` values."""
    pool: dict[tuple[type, Any], int] = {}
    at = [pool.setdefault(_key(value), len(pool)) for value in values]
    different = dict.fromkeys(at)
    if len(different) == 1:
        return {"same": plain(values[0])}
    if 2 * len(different) > len(values):
        return {"all": [plain(value) for value in values]}
    first = {number: index for index, number in reversed([*enumerate(at)])}
    return {"pool": [plain(values[first[number]]) for number in range(len(pool))], "at": at}


def _key(value: Any) -> tuple[type, Any]:
    """A key that distinguishes 1, 1.0 and True."""
    if isinstance(value, list | dict):
        return type(value), json.dumps(value, sort_keys=True)
    return type(value), value


def plain(value: Any) -> Any:
    """A value as JSON that a browser reads without loss; numbers that JavaScript lacks are text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if type(value) is int and abs(value) > _EXACT:
        return str(value)
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    return value


def _rows_of(rows: Rows) -> dict[str, list[int]]:
    """The rows of each run, by run_id. A failed run may be in several rows."""
    rows_of: dict[str, list[int]] = {}
    for index, row in enumerate(rows.rows):
        for part in (row.runs, row.failed):
            for run_id in _ids(part.values()):
                indices = rows_of.setdefault(run_id, [])
                if index not in indices:
                    indices.append(index)
    return rows_of


def _ids(parts: Iterable[Sequence[Run]]) -> Iterable[str]:
    return (run.record.run_id for runs in parts for run in runs)
