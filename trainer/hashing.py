"""Hashes of content: what a file is, whatever it is called and wherever it lies."""

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
    """The hash of a file's content in hex; read once per process as long as the file isn't touched.

    Raises `OSError`, also for what is no regular file: a pipe or a device may never come to an end.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file" if not path.is_dir() else "it is a folder")
    return _sha256(path, *stamp(path))


def stamp(path: Path) -> tuple[int, int, int, int]:
    """Size, modification and change time (ns) and inode: equal stamps mean an untouched file.

    The change time can't be set back by copying or by `touch`, so a swapped file shows.
    """
    status = path.stat()
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@lru_cache(maxsize=1024)
def _sha256(path: Path, *_stamp: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
