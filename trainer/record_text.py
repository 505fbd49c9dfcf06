"""The JSON text of a record: its atomic write, its checksum and its parser."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHECKSUM = "checksum"  # field of a row: hash of all other fields; absent in version 1


class CorruptRecord(ValueError):
    """A `record.json` that is not a valid record; the message says where and why."""


def checksum(row: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits over the written text of all other fields of a row."""
    return _digest(text_of({name: value for name, value in row.items() if name != CHECKSUM}).encode())


def is_as_written(content: bytes) -> bool:
    """Whether a file is unmodified: its checksum matches its other lines, byte for byte."""
    before, mark, after = content.partition(f' "{CHECKSUM}": "'.encode())
    return bool(mark) and after[:16].decode("ascii", "replace") == _digest(before + after[19:])


def write_json(path: Path, content: Any) -> Path:
    """Writes JSON to a temporary file beside `path` and renames it, so that `path` is never half-written."""
    import tempfile  # here, because analysis only reads

    text = text_of(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def parse(text: str) -> dict[str, Any]:
    """The flat row of a text, unchecked. Raises `ValueError` or `RecursionError`."""
    if text.startswith("\ufeff"):
        raise CorruptRecord("it begins with a byte-order mark, which no record has")
    row = json.loads(text, object_pairs_hook=_unique)
    if not isinstance(row, dict):
        raise CorruptRecord("not an object")
    try:
        text_of(row).encode()
    except UnicodeEncodeError as error:  # no file can store such text
        raise CorruptRecord(f"{error.object[error.start]!r} in a text is a lone surrogate") from None
    except ValueError:  # nan or inf, for which `check` names the field
        pass
    return row


def text_of(content: Any) -> str:
    """JSON in the layout of all files of a run: sorted, one field per line."""
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Hook of the JSON decoder that makes an object. Raises `CorruptRecord` for a repeated name."""
    content = dict(pairs)
    if len(content) < len(pairs):
        repeated = next(name for index, (name, _) in enumerate(pairs) if name in dict(pairs[:index]))
        raise CorruptRecord(f"{repeated}: appears twice")
    return content
