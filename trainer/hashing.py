"""Hashes of file contents, which do not depend on names and paths."""

from __future__ import annotations

import errno
import hashlib
import re
from functools import lru_cache
from pathlib import Path

from trainer.errors import ConfigError


def check_sha256(value: object, field: str) -> str:
    """`value` if it is a sha256 in lower-case hex. Raises `ConfigError` naming `field`."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ConfigError(f"{field}: {value!r} is not a sha256; allowed: 64 hexadecimal digits, lower case")
    return value


def sha256(path: Path) -> str:
    """The sha256 of a file's content in hex, cached in this process until the file is touched.

    Raises `OSError`, also for anything but a regular file: reading a pipe or a device may never end.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file" if not path.is_dir() else "it is a folder")
    return _sha256(path, *stamp(path))


def stamp(path: Path) -> tuple[int, int, int, int]:
    """Size, modification and change time (ns) and inode: equal stamps mean an untouched file.

    Neither copying nor `touch` can reset the change time, so a swapped file has another stamp.
    """
    status = path.stat()
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@lru_cache(maxsize=1024)
def _sha256(path: Path, *_stamp: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
