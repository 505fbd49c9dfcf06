"""The user's cache of folders. Each folder is complete or absent.

One process at a time builds a folder under a temporary name beside its target and renames it. Of two processes that
need the same folder, one builds it and the other waits. A killed process leaves only a hidden temporary folder, which
the next process removes.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.data.sources.paths import expanded
from trainer.errors import ConfigError

log = logging.getLogger(__name__)


def root() -> Path:
    """Returns the cache's folder: the environment variable LORATORY_CACHE, or else the user's cache folder."""
    chosen = os.environ.get("LORATORY_CACHE")
    if chosen:
        return expanded(chosen).absolute()
    from platformdirs import user_cache_path

    return user_cache_path("loratory")


def entry(key: str, build: Callable[[Path], None]) -> Path:
    """Returns the folder `key` of the cache. If it is absent, `build` fills an empty folder first.

    `key` is a relative path of safe names. Raises `ConfigError` if the cache can't be written, and whatever `build`
    raises; neither leaves a folder behind.
    """
    target = root() / key
    if target.is_dir():
        return target
    with _writing(), locked(key):
        if target.is_dir():  # another process built it while this one waited
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        for stale in target.parent.glob(f".{target.name}.*"):  # this process holds the lock, so its builder was killed
            shutil.rmtree(stale, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            build(temporary)
            temporary.chmod(0o755)  # mkdtemp's 0700 would hide it from other users of a shared cache
            os.replace(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return target


def discard(key: str) -> None:
    """Removes the folder `key`, whose content is wrong."""
    with _writing(), locked(key):
        shutil.rmtree(root() / key, ignore_errors=True)


def write(key: str, text: str) -> None:
    """Writes a small file of the cache atomically. Raises `ConfigError`."""
    target = root() / key
    with _writing():
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextmanager
def locked(key: str) -> Iterator[None]:
    """Holds the lock of `key` for one process at a time; the lock of a dead process is released."""
    from filelock import FileLock, Timeout

    path = root() / "locks" / (key.replace("/", "--") + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        log.info("waiting for another process, which is fetching %s …", key)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"LORATORY_CACHE: can't write to {root()}: {reason}; free some space there or set"
            " LORATORY_CACHE to another folder"
        ) from error
