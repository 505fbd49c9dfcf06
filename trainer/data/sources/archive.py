"""Copies single named files out of zip and tar archives.

No file is extracted under the name that the archive gives it, so no archive can write outside its target folder.
"""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from trainer.errors import ConfigError


def copy_member(archive: Path, member: Sequence[str], target: Path) -> None:
    """Copies the file `member` of `archive` to `target`.

    `member` is one name, or the name of an inner archive followed by a name in it. Raises `ConfigError` for a missing
    member or a damaged archive.
    """
    name, *rest = member
    if not rest:
        _copy(archive, name, target)
        return
    inner = target.with_name(f".{target.name}.archive")
    try:
        _copy(archive, name, inner)
        copy_member(inner, rest, target)
    finally:
        inner.unlink(missing_ok=True)


def _copy(archive: Path, name: str, target: Path) -> None:
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped, zipped.open(name) as source:
                _write(source, target)
        else:
            with tarfile.open(archive) as tarred:
                # extractfile returns None for a folder or a device, and follows links only within the archive
                content = tarred.extractfile(name)
                if content is None:
                    raise ConfigError(f"{archive.name}: {name} is not a file")
                with content:
                    _write(content, target)
    except KeyError:
        raise ConfigError(f"{archive.name}: has no file {name}") from None
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ConfigError(f"{archive.name}: truncated or not an archive ({error})") from None


def _write(source: IO[bytes], target: Path) -> None:
    with target.open("wb") as file:
        shutil.copyfileobj(source, file, length=1 << 20)
