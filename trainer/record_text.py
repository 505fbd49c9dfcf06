"""The text of a record: written whole or not at all, with a hash of itself, and read back as it was written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHECKSUM = "checksum"  # field of a row: a hash of all others; absent in version 1


class CorruptRecord(ValueError):
    """A `record.json` that can't be read as a record of this version; says where and why."""


def checksum(row: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits over the text of all other fields of a row, as it is written."""
    return _digest(text_of({name: value for name, value in row.items() if name != CHECKSUM}).encode())


def is_as_written(content: bytes) -> bool:
    """Whether a file is to the byte what was written: the checksum in it is that of its other lines."""
    before, mark, after = content.partition(f' "{CHECKSUM}": "'.encode())
    return bool(mark) and after[:16].decode("ascii", "replace") == _digest(before + after[19:])


def write_json(path: Path, content: Any) -> Path:
    """Writes JSON to a temporary name beside `path`, then renames: never a half-written file."""
    import tempfile  # analysis, which reads, comes up without it

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
    """The flat row that a text holds, not checked. Raises `ValueError` or `RecursionError`."""
    if text.startswith("\ufeff"):
        raise CorruptRecord("a byte-order mark is in front, which no record has")
    row = json.loads(text, object_pairs_hook=_unique)
    if not isinstance(row, dict):
        raise CorruptRecord("not an object")
    try:
        text_of(row).encode()
    except UnicodeEncodeError as error:  # no text that could be written anywhere
        raise CorruptRecord(f"{error.object[error.start]!r} in a text is half a character") from None
    except ValueError:  # nan or inf, which `check` names
        pass
    return row


def text_of(content: Any) -> str:
    """JSON as all files of a run have it: sorted, one field a line."""
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object that these are, for a JSON decoder. Raises `CorruptRecord` for a name that comes twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for place, (name, _) in enumerate(pairs) if name in dict(pairs[:place]))
        raise CorruptRecord(f"{twice}: is there twice")
    return found
