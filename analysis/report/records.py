"""All records, column by column: what the browser makes the table of all runs, and the page of each, from.

Most columns have few different values: each is written once, and the runs have numbers of it. So ten thousand
records take a few megabytes.
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

_EXACT = 2**53  # a browser has no larger whole numbers


def order(found: RunSet, rows: Rows) -> list[Run]:
    """All runs, row by row of the table, then by task and seed."""
    first = {run_id: places[0] for run_id, places in _places(rows).items()}
    tasks = {task: place for place, task in enumerate(rows.tasks)}
    everything = [*found.done, *found.failed]

    def key(run: Run) -> tuple[int, int, int, str]:
        record = run.record
        return first[record.run_id], tasks[record.task], record.seed, record.run_id

    return sorted(everything, key=key)


def build(runs: Sequence[Run], rows: Rows, fractions: dict[str, bool]) -> dict[str, Any]:
    """The runs in this order, for the browser. fractions: metrics that are printed ×100."""
    places = _places(rows)
    values: dict[str, list[Any]] = {}
    for number, run in enumerate(runs):
        for name, value in run.record.row().items():
            if name not in values:
                values[name] = [None] * len(runs)
            values[name][number] = value
    return {
        "count": len(runs),
        "fields": {name: encode(values[name]) for name in sorted(values, key=columns.place)},
        "folder": [run.path for run in runs],
        "repeat": {
            number: texts
            for number, run in enumerate(runs)
            if (texts := repeat.overrides(run.record, Path(run.folder)))
        },
        "foreign": [number for number, run in enumerate(runs) if repeat.is_foreign(run.record)],
        "row": encode([places[run.record.run_id] for run in runs]),
        "rows": [row.label for row in rows.rows],
        "fractions": sorted(name for name, fraction in fractions.items() if fraction),
    }


def encode(values: Sequence[Any]) -> dict[str, Any]:
    """A column: `same` for one value in all places, `pool` and the numbers `at`, or `all` of them."""
    pool: dict[tuple[type, Any], int] = {}
    at = [pool.setdefault(_key(value), len(pool)) for value in values]
    different = dict.fromkeys(at)
    if len(different) == 1:
        return {"same": plain(values[0])}
    if 2 * len(different) > len(values):
        return {"all": [plain(value) for value in values]}
    first = {number: place for place, number in reversed([*enumerate(at)])}
    return {"pool": [plain(values[first[number]]) for number in range(len(pool))], "at": at}


def _key(value: Any) -> tuple[type, Any]:
    """1, 1.0 and True are three values."""
    if isinstance(value, list | dict):
        return type(value), json.dumps(value, sort_keys=True)
    return type(value), value


def plain(value: Any) -> Any:
    """A value as JSON that a browser reads without loss: text for numbers that it hasn't got."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if type(value) is int and abs(value) > _EXACT:
        return str(value)
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    return value


def _places(rows: Rows) -> dict[str, list[int]]:
    """By run_id the rows that a run is in: a failed one may be in several."""
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows.rows):
        for part in (row.runs, row.failed):
            for run_id in _ids(part.values()):
                own = places.setdefault(run_id, [])
                if place not in own:
                    own.append(place)
    return places


def _ids(parts: Iterable[Sequence[Run]]) -> Iterable[str]:
    return (run.record.run_id for runs in parts for run in runs)
