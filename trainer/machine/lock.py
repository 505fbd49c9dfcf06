"""One process per run: whoever carries out a run holds its lock in `<study>/.locks/`, and others leave it alone.

There are two files for each run, because no single kind of lock is right on a laptop and on a cluster:

    <run_id>.lock     flock. The kernel lets go of it when its process dies, however it dies: nothing is ever stale.
                      Across machines it holds where the file system passes locks on (NFS 4, Lustre with `flock`).
    <run_id>.lease    filelock's lease, for file systems that don't: it names host, process and the process's start,
                      and is renewed every quarter of `LEASE` seconds by a thread of the process that holds it.

A lease of this host whose process is gone is taken over at once. One of another host is taken over when it was not
renewed for `LEASE` seconds, measured by the clock of the one who waits, so that no two clocks need to agree; only a
lease that looks old, or comes from a time ahead, is waited for, so a run in good hands costs nobody any time. A
holder that lost its lease (a machine that slept, a file system that hung) stops after its step, and saves nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, OwnerRecord, SoftFileLease, Timeout

from trainer.errors import Held
from trainer.machine import signals

log = logging.getLogger(__name__)

LEASE = 120.0  # seconds; more than an NFS client keeps attributes in its cache (60)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within it no other process carries out the run of `folder`. Raises `Held` where one does."""
    place = folder.parent / ".locks" / folder.name
    place.parent.mkdir(parents=True, exist_ok=True)
    text = f"{folder}: another process has taken this run over"
    lease = _lease(place, on_compromise=lambda _: signals.lost(text))
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(FileLock(f"{place}.lock", timeout=0))
            held.enter_context(lease.acquire(timeout=1.5 * LEASE if _looks_wrong(place) else 0))
        except Timeout:
            raise Held(f"{folder}: another process is carrying out this run{_holder(folder)}") from None
        yield


def _looks_wrong(place: Path) -> bool:
    """Whether a lease is there that, by the file server's clock, was last renewed two terms ago, or in a time to come.

    The second is of a machine whose clock ran ahead; that it still runs shows in that it renews the lease.
    """
    try:
        renewed = os.stat(f"{place}.lease").st_mtime
    except FileNotFoundError:
        return False
    with tempfile.NamedTemporaryFile(dir=place.parent, prefix=".now-") as probe:
        age = os.fstat(probe.fileno()).st_mtime - renewed
    if age < -2 * LEASE:
        text = "%s.lease: renewed %.0f s in the future by this clock; taken over unless it is renewed within %.0f s"
        log.warning(text, place, -age, LEASE)
    return abs(age) > 2 * LEASE


def owner(folder: Path) -> OwnerRecord | None:
    """Who carries out the run of `folder`, as far as its lease says: `pid`, `hostname`."""
    return _lease(folder.parent / ".locks" / folder.name).owner


def _lease(place: Path, **options: Any) -> SoftFileLease:
    return SoftFileLease(f"{place}.lease", lease_duration=LEASE, heartbeat_interval=LEASE / 4, **options)


def _holder(folder: Path) -> str:
    found = owner(folder)
    return f" (process {found.pid} on {found.hostname.partition('?')[0]})" if found is not None else ""
