"""The rows of a spool as Arrow's columns: a parquet file, or a table in memory."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.columns import Columns, text
from analysis.verb import AnalysisError

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
    first = list(schema)[: len(columns.own) + len(columns.code)]
    while batch := list(itertools.islice(rows, _BATCH)):
        values = zip(*(own + code for own, code, _ in batch), strict=True)
        arrays = [_array(field, column) for field, column in zip(first, values, strict=True)]
        # Of each base once what its settings are, then which row has which base.
        order = {place: number for number, place in enumerate(dict.fromkeys(place for *_, place in batch))}
        bases = [columns.bases[place] for place in order]
        taken = pa.array([order[place] for *_, place in batch], pa.int32())
        for field, name in zip(list(schema)[len(first) :], columns.shared, strict=True):
            entries = _array(field, [base.get(name) for base in bases])
            arrays.append(pa.DictionaryArray.from_arrays(taken, entries).dictionary_decode())
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _array(field: pa.Field, values: Sequence[Any]) -> pa.Array:
    if field.type == pa.string() and not _TEXT.issuperset(map(type, values)):
        values = [value if value is None or type(value) is str else str(text(value)) for value in values]
    try:
        return pa.array(values, field.type)
    except (pa.ArrowInvalid, OverflowError) as error:
        raise AnalysisError(f"{field.name}: does not fit into a column: {error}") from None
