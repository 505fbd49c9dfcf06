"""Stands between a run and its tracker: whatever happens over there costs the run one warning at most.

The tracker's process is watched by a thread that does nothing but wait. It kills the process, and what that has
started, when a call takes longer than the tracker's `timeout`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import psutil

from trainer.plain import mapping
from trainer.sweeps import plan
from trainer.sweeps.plan import Planned
from trainer.trackers.host import FILENAME, METRICS, RANKS
from trainer.trackers.tail import digests
from trainer.trackers.tracker import RunInfo, Tracker

log = logging.getLogger(__name__)

BOOT = 60.0  # seconds that its process may take to come up: no fault of the tracker's
LOG = "tracker.log"  # in a run's folder: the traceback of a tracker that has raised


def begin(planned: Planned) -> Guard | None:
    """Starts the tracker of a run whose folder is there; None where the run has none."""
    tracker = plan.tracker(planned.config)
    return None if tracker is None else Guard(tracker, planned)


class Guard:
    """A tracker at work. `end` is the only call that waits, for `timeout` seconds at most."""

    def __init__(self, tracker: Tracker, planned: Planned) -> None:
        config, folder = planned.config, planned.folder.absolute()
        self.name = type(tracker).__name__.lower()
        self.timeout = tracker.timeout
        whole = mapping(config)
        run = RunInfo(folder=folder, **planned.names, config=whole, pid=os.getpid())
        order = {
            "tracker": whole["tracker"],
            "run": asdict(run) | {"folder": str(folder)},
            "name": self.name,
            "seen": _seen(folder, self.name),
        }
        self._log = folder / LOG
        self._ending = False
        self._family: list[psutil.Process] = []
        self._thread = threading.Thread(target=self._guarded, args=(order,), name="tracker", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Lets the tracker take the rest in and closes it. The run's record, if it has one, is there by now."""
        self._ending = True
        self._thread.join()

    def _guarded(self, order: dict[str, Any]) -> None:
        try:
            trouble = self._watch(order)
        except Exception as error:
            trouble = f"{type(error).__name__}: {error}"
        if trouble:
            log.warning("tracker %s: %s; it is off for this run, whose own files are complete", self.name, trouble)

    def _watch(self, order: dict[str, Any]) -> str | None:
        """Serves the tracker's process to its end; what went wrong, in one line."""
        with _printed(self._log) as printed:
            process = _start(printed)
            assert process.stdin and process.stdout
            try:
                trouble = self._talk(process, json.dumps(order).encode() + b"\n")
                if trouble is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(self.timeout)  # what was to be shown is; its exit handlers may do what they like
            finally:
                self._kill(process)
                process.stdin.close()
                process.stdout.close()
        return trouble

    def _talk(self, process: subprocess.Popen[bytes], order: bytes) -> str | None:
        assert process.stdin and process.stdout
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)
        busy, limit, text = "its process did not come up", time.monotonic() + BOOT, b""
        up = told = False
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdout, selectors.EVENT_READ)
            while True:
                if order:
                    order = order[_write(process.stdin, order) :]
                elif self._ending and up and not told:
                    # From here on all that is left to do has one limit.
                    told, limit, order = True, time.monotonic() + self.timeout, b"finish\n"
                if time.monotonic() > limit:
                    return f"no answer within {self.timeout if up else BOOT:g} s ({busy})"
                if not ready.select(0.05 if self._ending or order else 0.25):
                    continue
                part = process.stdout.read(1 << 16)
                if part == b"":
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(self.timeout)
                    return f"its process ended (exit code {process.returncode})"
                *lines, text = (text + (part or b"")).split(b"\n")
                for message in map(json.loads, lines):
                    if "failed" in message:
                        return str(message["failed"])
                    if "done" in message:
                        return None
                    up = True
                    if message.get("warning"):
                        log.warning("tracker %s: %s", self.name, message["warning"])
                    if message.get("note"):
                        log.info("tracker %s: %s", self.name, message["note"])
                    if message.get("busy"):
                        busy = message["busy"]
                    if not told:
                        limit = time.monotonic() + self.timeout if message.get("busy") else float("inf")
                    if "note" in message or "warning" in message:
                        self._family = _children(process)

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        for victim in [*_children(process), *self._family]:
            with contextlib.suppress(psutil.Error):
                victim.kill()
        process.kill()
        process.wait()


def _start(printed: IO[bytes] | int) -> subprocess.Popen[bytes]:
    # -P: the folder that the user is in must not stand before the packages that this process uses.
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "trainer.trackers.host"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=printed,
        bufsize=0,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        start_new_session=True,  # an interrupt from the keyboard is for the run
    )


def _write(pipe: IO[bytes], content: bytes) -> int:
    """How much of it the pipe has taken; all, where nobody reads it any more: its output says so."""
    try:
        return pipe.write(content) or 0
    except BlockingIOError:
        return 0
    except BrokenPipeError:
        return len(content)


@contextlib.contextmanager
def _printed(path: Path) -> Any:
    """The file for what the process says of its end, which goes if that is nothing."""
    try:
        file = path.open("wb")
    except OSError:
        yield subprocess.DEVNULL
        return
    try:
        with file:
            yield file
    finally:
        with contextlib.suppress(OSError):
            if not path.stat().st_size:
                path.unlink()


def _children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def _seen(folder: Path, name: str) -> dict[str, list[str]]:
    """Which lines this tracker has been given before; taken before the run forgets those after its checkpoint."""
    try:
        content = json.loads((folder / FILENAME).read_text(encoding="utf-8"))
        sent = content["sent"] if content["name"] == name else {}
        return {file: digests(folder / file, int(sent.get(file, 0))) for file in (METRICS, RANKS)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
