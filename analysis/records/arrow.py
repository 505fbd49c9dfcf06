"""The rows of a spool as Arrow's columns: a parquet file, or a table in memory."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.commands.command import AnalysisError
from analysis.records.columns import Columns, text
from analysis.records.reader import Values

_TEXT = {str, type(None)}
_BATCH = 2000  # rows in memory, and in a row group of a file


def table(columns: Columns) -> pa.Table:
    """All rows in memory."""
    schema = _schema(columns)
    return pa.Table.from_batches(_batches(columns, schema), schema)


def write(columns: Columns, output: Path) -> None:
    """A parquet file; there is the whole file or none. Raises `AnalysisError` where it can't be written."""
    schema = _schema(columns)
    temporary = output.with_name(f".{output.name}.tmp")
    try:
        with pq.ParquetWriter(temporary, schema) as writer:
            for batch in _batches(columns, schema):
                writer.write_batch(batch)
        os.replace(temporary, output)
    except OSError as error:
        raise AnalysisError(f"can't write {output}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _schema(columns: Columns) -> pa.Schema:
    return pa.schema([(name, _type(name, kinds)) for name, kinds in columns.kinds().items()])


def _type(name: str, kinds: set[type]) -> pa.DataType:
    if name == "overrides":
        return pa.list_(pa.string())
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    return pa.float64() if kinds in ({float}, {int, float}) else pa.string()


def _batches(columns: Columns, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    rows = iter(columns)
    # The rows of a batch are gone before those of the next come.
    while (first := next(rows, None)) is not None:
        yield _batch(columns, schema, [first, *itertools.islice(rows, _BATCH - 1)])


def _batch(columns: Columns, schema: pa.Schema, rows: Sequence[tuple[Values, int, int]]) -> pa.RecordBatch:
    fields = iter(schema)
    own, code, shared = (list(itertools.islice(fields, len(p))) for p in (columns.own, columns.code, columns.shared))
    values, codes, bases = zip(*rows, strict=True)
    arrays = [_array(field, column) for field, column in zip(own, zip(*values, strict=True), strict=True)]
    arrays += _decoded(code, columns.code, codes, columns.codes.__getitem__)
    arrays += _decoded(shared, columns.shared, bases, columns.bases.items)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _decoded(
    fields: Sequence[pa.Field], names: Sequence[str], places: Sequence[int], get: Callable[[int], dict[str, Any]]
) -> Iterator[pa.Array]:
    """Columns of what rows have in common: of each place once what is there, then which row has which."""
    order = {place: number for number, place in enumerate(dict.fromkeys(places))}
    found = [get(place) for place in order]
    taken = pa.array([order[place] for place in places], pa.int32())
    for field, name in zip(fields, names, strict=True):
        entries = _array(field, [entry.get(name) for entry in found])
        yield pa.DictionaryArray.from_arrays(taken, entries).dictionary_decode()


def _array(field: pa.Field, values: Sequence[Any]) -> pa.Array:
    if field.type == pa.string() and not _TEXT.issuperset(map(type, values)):
        values = [value if value is None or type(value) is str else str(text(value)) for value in values]
    try:
        return pa.array(values, field.type)
    except (pa.ArrowInvalid, OverflowError) as error:
        raise AnalysisError(f"{field.name}: does not fit into a column: {error}") from None
