"""Locks that allow one process per run. They lie in `<study>/.locks/`.

Each run has two files, because no single kind of lock works on both a laptop and a cluster:

    <run_id>.lock     flock. The kernel releases it when the process dies, so that it is never stale. It works across
                      machines if the file system supports it (NFS 4, Lustre with `flock`).
    <run_id>.lease    filelock's lease, for file systems that don't. It names host, process and the process's start
                      time, and a thread of the owner renews it every `LEASE` / 4 seconds.

If the owner of a lease is a dead process of this host, the lease is taken over at once. A lease of another host is
taken over after `LEASE` seconds without renewal, measured by the waiting process's clock, so that clocks need not
agree. Only a lease that looks expired, or is dated in the future, is waited for: a live lease adds no delay. An owner
that has lost its lease (the machine slept, the file system hung) stops after the current step and saves nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, OwnerRecord, SoftFileLease, Timeout

from trainer.errors import Locked
from trainer.machine import signals

log = logging.getLogger(__name__)

LEASE = 120.0  # seconds; longer than an NFS client caches attributes (60)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks the run of `folder`. Raises `Locked` if another process is carrying it out."""
    path = folder.parent / ".locks" / folder.name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = f"{folder}: another process has taken this run over"
    lease = _lease(path, on_compromise=lambda _: signals.lose_lock(text))
    with contextlib.ExitStack() as locks:
        try:
            locks.enter_context(FileLock(f"{path}.lock", timeout=0))
            locks.enter_context(lease.acquire(timeout=1.5 * LEASE if _may_be_stale(path) else 0))
        except Timeout:
            raise Locked(f"{folder}: another process is carrying out this run{_owner_text(folder)}") from None
        yield


def _may_be_stale(path: Path) -> bool:
    """Whether a lease was last renewed more than 2 × `LEASE` ago or ahead, by the file server's clock.

    A date in the future comes from a machine whose clock was fast; its owner is alive if it renews the lease.
    """
    try:
        renewed = os.stat(f"{path}.lease").st_mtime
    except FileNotFoundError:
        return False
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".now-") as probe:
        age = os.fstat(probe.fileno()).st_mtime - renewed
    if age < -2 * LEASE:
        text = "%s.lease: renewed %.0f s in the future by this clock; taken over unless it is renewed within %.0f s"
        log.warning(text, path, -age, LEASE)
    return abs(age) > 2 * LEASE


def owner(folder: Path) -> OwnerRecord | None:
    """`pid` and `hostname` of the process that carries out the run of `folder`, by its lease; None without a lease."""
    return _lease(folder.parent / ".locks" / folder.name).owner


def carried_out_by_children(study: Path) -> list[tuple[Path, int]]:
    """The runs of a study that processes below this one carry out, each with the number of its process."""
    import psutil  # here, because a sweep that is done needs none of it

    children = {process.pid for process in psutil.Process().children(recursive=True)}
    folders = [study / path.stem for path in (study / ".locks").glob("*.lease")]
    found = [(folder, process) for folder in folders if (process := owner(folder)) is not None]
    here = socket.gethostname()
    return [
        (folder, process.pid)
        for folder, process in found
        if process.pid in children and process.hostname.partition("?")[0] == here
    ]


def _lease(path: Path, **options: Any) -> SoftFileLease:
    return SoftFileLease(f"{path}.lease", lease_duration=LEASE, heartbeat_interval=LEASE / 4, **options)


def _owner_text(folder: Path) -> str:
    process = owner(folder)
    return f" (process {process.pid} on {process.hostname.partition('?')[0]})" if process is not None else ""
