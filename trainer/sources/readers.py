"""The user's tables as plain columns: csv, tsv, jsonl and parquet."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError


def read_columns(path: Path, names: Sequence[str], field: str) -> dict[str, list[Any]]:
    """The columns `names` of a table, each a list over its rows.

    The ending decides: .csv (commas) and .tsv (tabs), UTF-8 with a header line, where every
    value is a string; .jsonl, an object per line; .parquet. `field` is the setting that names
    the file. Raises `ConfigError` for a file that is missing, damaged or of another kind, and
    for a missing column.
    """
    readers = {".csv": _csv, ".tsv": _tsv, ".jsonl": _jsonl, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"{field}: {str(path)!r} has an unknown ending; allowed: {', '.join(readers)}")
    where = f"{field}: {str(path)!r}"
    try:
        return reader(path, names, where)
    except FileNotFoundError:
        raise ConfigError(f"{where} is not there") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{where} can't be read: {error.strerror or error}") from None


def _csv(path: Path, names: Sequence[str], where: str) -> dict[str, list[Any]]:
    return _delimited(path, names, where, ",")


def _tsv(path: Path, names: Sequence[str], where: str) -> dict[str, list[Any]]:
    return _delimited(path, names, where, "\t")


def _delimited(path: Path, names: Sequence[str], where: str, delimiter: str) -> dict[str, list[Any]]:
    text = path.read_bytes().decode("utf-8-sig")  # whole, so that a wrong byte has a position
    csv.field_size_limit(sys.maxsize)  # the default, 128 KiB, is shorter than some texts
    # strict: an open quote at the end of a truncated file is an error, not a long last field
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    result: dict[str, list[Any]] = {name: [] for name in names}
    try:
        header = next(reader, [])
        _require(names, header, where)
        places = {name: header.index(name) for name in names}
        for row in reader:
            if not row:  # a blank line
                continue
            if len(row) != len(header):
                raise ConfigError(
                    f"{where}: line {reader.line_num} has {len(row)} fields, the header has {len(header)};"
                    " truncated, or a text with the delimiter in it isn't quoted"
                )
            for name, place in places.items():
                result[name].append(row[place])
    except csv.Error as error:
        raise ConfigError(
            f"{where}: line {reader.line_num}: {error}; truncated, or a text with quotes in it isn't quoted"
        ) from None
    return result


def _jsonl(path: Path, names: Sequence[str], where: str) -> dict[str, list[Any]]:
    result: dict[str, list[Any]] = {name: [] for name in names}
    # only \n ends a line: splitlines() would also cut at characters that JSON allows in a string
    for number, line in enumerate(path.read_bytes().decode("utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{where}: line {number} is truncated or not JSON ({error})") from None
        if not isinstance(row, dict):
            raise ConfigError(f"{where}: line {number} is not an object; allowed: {{column: value, …}}")
        _require(names, list(row), f"{where}: line {number}")
        for name in names:
            result[name].append(row[name])
    return result


def _parquet(path: Path, names: Sequence[str], where: str) -> dict[str, list[Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        _require(names, file.schema_arrow.names, where)
        table = file.read(columns=list(names))
    except pyarrow.ArrowException as error:
        raise ConfigError(f"{where} is truncated or not parquet ({error})") from None
    return {name: table.column(name).to_pylist() for name in names}


def _require(names: Sequence[str], there: Sequence[str], where: str) -> None:
    for name in names:
        if name not in there:
            raise ConfigError(f"{where} has no column {name!r}; there is: {', '.join(there) or 'none'}")
        if list(there).count(name) > 1:
            raise ConfigError(f"{where} has the column {name!r} more than once")
