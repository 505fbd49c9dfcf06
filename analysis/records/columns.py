"""Runs as rows of one table: csv, or Arrow for parquet and pandas."""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.errors import AnalysisError
from analysis.records import settings
from analysis.records.discovery import Run
from analysis.records.grouping import Point
from analysis.records.runs import RunSet, ordered
from analysis.text.formulas import inert
from analysis.text.sorting import natural
from trainer.record import FIELDS, GROUPS, OPEN_GROUPS, Fields

if TYPE_CHECKING:
    import pyarrow as pa

# The groups of fields, in order, after the plain fields.
_ORDER = (
    *("metric", "metrics", "select", "retention", "method", "data", "steps", "params", "rank", "memory", "time"),
    "files",
    *("git", "code", "versions", "hardware", "config"),
)
_GROUPS = tuple(group for group in OPEN_GROUPS if group != "identity")  # which is a choice of the settings


class Columns:
    """The rows of all runs, sorted by variant, model, task, settings and seed."""

    def __init__(self, run_set: RunSet) -> None:
        self._runs = _sorted(run_set)
        self.kinds: dict[str, set[type]] = {}  # by column, the types of its values
        for row in self:
            for name, value in row.items():
                self.kinds.setdefault(name, set()).add(type(value))
        self.names = sorted(self.kinds, key=sort_key)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for run in self._runs:
            yield run.record.fields(_GROUPS)

    def csv(self) -> Iterator[str]:
        """The csv line by line. Lists are JSON; missing values are empty."""
        lines: list[str] = []
        writer = csv.writer(_Into(lines), lineterminator="\n")
        writer.writerow(self.names)
        for row in self:
            writer.writerow([text(row.get(name)) for name in self.names])
            yield from lines
            lines.clear()
        yield from lines

    def table(self) -> pa.Table:
        """All rows as an Arrow table. Raises `AnalysisError` for a number that is too large."""
        import pyarrow as pa

        columns: dict[str, list[Any]] = {name: [] for name in self.names}
        for row in self:
            for name, column in columns.items():
                column.append(row.get(name))
        arrays = {name: _array(name, self.kinds[name] - {type(None)}, column) for name, column in columns.items()}
        return pa.table(arrays)

    def write_parquet(self, output: Path) -> None:
        """Writes a parquet file atomically. Raises `AnalysisError` if it can't be written."""
        import pyarrow.parquet as pq

        temporary = output.with_name(f".{output.name}.tmp")
        try:
            pq.write_table(self.table(), temporary)
            os.replace(temporary, output)
        except OSError as error:
            raise AnalysisError(f"can't write {output}: {error.strerror or error}") from None
        finally:
            temporary.unlink(missing_ok=True)


def _sorted(run_set: RunSet) -> list[Run]:
    cells: dict[tuple[str, str, str], list[Point]] = {}
    for point in run_set.points:
        cells.setdefault((point.variant, point.model, point.task), []).append(point)
    runs: list[Run] = []
    for name in sorted(cells, key=lambda cell: tuple(map(natural, cell))):
        differ = sorted(settings.differing(cells[name]))

        def values(point: Point, differ: Sequence[str] = differ) -> tuple[tuple[object, ...], ...]:
            return tuple(settings.sort_key(point.value(setting)) for setting in differ)

        for _, alike in itertools.groupby(sorted(cells[name], key=values), values):
            runs += ordered(alike)
    return runs


def _array(name: str, kinds: set[type], values: Sequence[Any]) -> pa.Array:
    import pyarrow as pa

    if name == "overrides":
        kind = pa.list_(pa.string())
    elif kinds == {bool}:
        kind = pa.bool_()
    elif kinds == {int}:
        kind = pa.int64()
    else:
        kind = pa.float64() if kinds in ({float}, {int, float}) else pa.string()
    if kind == pa.string() and kinds != {str}:
        values = [value if value is None or type(value) is str else str(_json(value)) for value in values]
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, OverflowError) as error:
        raise AnalysisError(f"{name}: does not fit into a column: {error}") from None


def text(value: Any) -> Any:
    """A value for csv: text is never a formula, and values that are neither text nor numbers are JSON."""
    if type(value) is str:
        return inert(value)
    return _json(value)


def _json(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if type(value) in (bool, list, dict) else value


class _Into:
    """A file that appends every write to a list."""

    def __init__(self, lines: list[str]) -> None:
        self.write = lines.append


def sort_key(name: str) -> tuple[int, int, tuple[object, ...]]:
    """Sort key of a field's name: plain fields first, then group by group, unknown ones last."""
    group, dot, rest = name.partition(".")
    if not dot:
        known = FIELDS[Fields]
        return (0, known.index(name), ()) if name in known else (len(_ORDER) + 1, 0, natural(name))
    fields: Iterable[str] = FIELDS[GROUPS[group]] if group in GROUPS else ()
    first = 1 + _ORDER.index(group) if group in _ORDER else len(_ORDER) + 1
    return (first, list(fields).index(rest) if rest in fields else 0, natural(rest))
