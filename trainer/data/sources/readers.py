"""Reads columns of the user's tables: csv, tsv, jsonl and parquet."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError

log = logging.getLogger(__name__)


def read_columns(path: Path, names: Sequence[str], field: str) -> dict[str, list[Any]]:
    """Reads the columns `names` of a table, each a list over the rows.

    The file's suffix determines the format: .csv (commas) and .tsv (tabs), UTF-8 with a header line, where every value
    is a string; .jsonl, one object per line; .parquet. `field` is the setting that names the file. Raises `ConfigError`
    for a file that is missing, damaged or of another format, and for a missing column.
    """
    readers = {".csv": _csv, ".tsv": _tsv, ".jsonl": _jsonl, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"{field}: {str(path)!r} has an unknown suffix; allowed: {', '.join(readers)}")
    where = f"{field}: {str(path)!r}"
    try:
        return reader(path, names, where)
    except FileNotFoundError:
        raise ConfigError(f"{where} does not exist") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{where} can't be read: {error.strerror or error}") from None


def column_names(path: Path) -> list[str]:
    """Returns the column names in a table's header or first row.

    They are empty for a file that `read_columns` refuses with an error.
    """
    ending = path.suffix.lower()
    try:
        if ending == ".parquet":
            import pyarrow
            import pyarrow.parquet

            try:
                return list(pyarrow.parquet.read_schema(path).names)
            except pyarrow.ArrowException:
                return []
        first = next((line for line in _lines(_text(path)) if line.strip()), "")
        if ending == ".jsonl":
            row = json.loads(first or "{}")
            return list(row) if isinstance(row, dict) else []
        return next(csv.reader([first], delimiter="\t" if ending == ".tsv" else ","), [])
    except (OSError, ValueError, csv.Error):
        return []


def _csv(path: Path, names: Sequence[str], where: str) -> dict[str, list[Any]]:
    return _quoted(_text(path), names, where, ",")


def _tsv(path: Path, names: Sequence[str], where: str) -> dict[str, list[Any]]:
    """Quotes in a .tsv are either ordinary characters, as in GLUE's files, or enclose fields, as pandas writes them.

    They are taken as ordinary characters if each line has as many fields as the header, unless every quote is where a
    program would have put it to enclose a field.
    """
    text = _text(path)
    lines = _lines(text)
    rows = [line.split("\t") for line in lines if line]
    if not rows or any(len(row) != len(rows[0]) for row in rows) or _enclose_fields(rows[1:]):
        return _quoted(text, names, where, "\t")
    _require(names, rows[0], where)
    return {name: [row[rows[0].index(name)] for row in rows[1:]] for name in names}


def _enclose_fields(rows: Sequence[Sequence[str]]) -> bool:
    """Whether all quotes enclose whole fields, with inner quotes doubled.

    In each column either all fields are enclosed, or only those that contain quotes.
    """
    for column in zip(*rows, strict=True):
        enclosed = [field for field in column if '"' in field]
        if not all(re.fullmatch(r'"(?:[^"]|"")*"', field) for field in enclosed):
            return False
        if len(enclosed) < len(column) and not all('""' in field[1:-1] for field in enclosed):
            return False
    return True


def _quoted(text: str, names: Sequence[str], where: str, delimiter: str) -> dict[str, list[Any]]:
    """Reads a table whose quotes may enclose a field with delimiters, line ends and doubled quotes."""
    csv.field_size_limit(sys.maxsize)  # the default of 128 KiB is too short for some texts
    # strict: an open quote at the end of a truncated file is an error and not a long last field
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    result: dict[str, list[Any]] = {name: [] for name in names}
    doubtful: list[tuple[int, int]] = []
    try:
        header = next(reader, [])
        _require(names, header, where)
        columns = {name: header.index(name) for name in names}
        before = reader.line_num
        for row in reader:
            first, before = before + 1, reader.line_num
            if not row:  # a blank line
                continue
            if len(row) != len(header):
                raise ConfigError(
                    f"{where}: line {reader.line_num} has {len(row)} fields, the header has {len(header)};"
                    " truncated, or a text with the delimiter in it isn't quoted"
                )
            if before > first and _reads_as_rows(row, len(header), delimiter):
                doubtful.append((first, before))
            for name, index in columns.items():
                result[name].append(row[index])
    except csv.Error as error:
        raise ConfigError(
            f"{where}: line {reader.line_num}: {error}; truncated, or a text with quotes in it isn't quoted"
        ) from None
    if doubtful:
        log.warning(
            "%s: quotes join several lines into one row %d times, although each line could be a row: first in"
            " lines %d to %d",
            where,
            len(doubtful),
            *doubtful[0],
        )
    return result


def _reads_as_rows(row: Sequence[str], fields: int, delimiter: str) -> bool:
    """Whether the first and the last line of a row would be rows without blank fields if quotes were ordinary."""
    lines = [line.split(delimiter) for line in re.split(r"\r\n|\r|\n", delimiter.join(row))]
    return all(len(line) == fields and all(map(str.strip, line)) for line in (lines[0], lines[-1]))


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig")  # decoded as a whole, so that an error has the byte's position


def _lines(text: str) -> list[str]:
    """Splits a text at \\n or \\r\\n, or at \\r if it has neither.

    str.splitlines() would also split at characters that texts contain.
    """
    return text.replace("\r\n", "\n").split("\n") if "\n" in text else text.split("\r")


def _jsonl(path: Path, names: Sequence[str], where: str) -> dict[str, list[Any]]:
    result: dict[str, list[Any]] = {name: [] for name in names}
    for number, line in enumerate(_lines(_text(path)), 1):
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


def _require(names: Sequence[str], header: Sequence[str], where: str) -> None:
    for name in names:
        if name not in header:
            raise ConfigError(f"{where} has no column {name!r}; found: {', '.join(map(repr, header)) or 'none'}")
        if list(header).count(name) > 1:
            raise ConfigError(f"{where} has the column {name!r} more than once")
