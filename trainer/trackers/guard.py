"""Starts and supervises the tracker's process, so that its failures cost the run one warning at most.

A thread waits for messages of the process. If a call takes longer than the tracker's `timeout`, the thread kills the
process and its children.
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

BOOT = 60.0  # seconds that the process may take to start, before the tracker's own timeout applies
LOG = "tracker.log"  # in a run's folder: traceback of a tracker that failed


def begin(planned: Planned) -> Guard | None:
    """Starts the tracker of a run, whose folder must exist; None if the run has no tracker."""
    tracker = plan.tracker(planned.config)
    return None if tracker is None else Guard(tracker, planned)


class Guard:
    """A running tracker. Only `end` waits, for `timeout` seconds at most."""

    def __init__(self, tracker: Tracker, planned: Planned) -> None:
        config, folder = planned.config, planned.folder.absolute()
        self.name = type(tracker).__name__.lower()
        self.timeout = tracker.timeout
        settings = mapping(config)
        run = RunInfo(folder=folder, **planned.names, config=settings, pid=os.getpid())
        request = {
            "tracker": settings["tracker"],
            "run": asdict(run) | {"folder": str(folder)},
            "name": self.name,
            "seen": _seen(folder, self.name),
        }
        self._log = folder / LOG
        self._ending = False
        self._children: list[psutil.Process] = []
        self._thread = threading.Thread(target=self._guarded, args=(request,), name="tracker", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Lets the tracker read the rest of the files, then closes it. The run's record must be written before."""
        self._ending = True
        self._thread.join()

    def _guarded(self, request: dict[str, Any]) -> None:
        try:
            trouble = self._watch(request)
        except Exception as error:
            trouble = f"{type(error).__name__}: {error}"
        if trouble:
            log.warning("tracker %s: %s; it is off for this run, whose own files are complete", self.name, trouble)

    def _watch(self, request: dict[str, Any]) -> str | None:
        """Supervises the tracker's process until it ends. Returns a failure as one line, else None."""
        with _error_log(self._log) as errors:
            process = _start(errors)
            assert process.stdin and process.stdout
            try:
                trouble = self._talk(process, json.dumps(request).encode() + b"\n")
                if trouble is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(self.timeout)  # all is logged; only exit handlers are left
            finally:
                self._kill(process)
                process.stdin.close()
                process.stdout.close()
        return trouble

    def _talk(self, process: subprocess.Popen[bytes], outgoing: bytes) -> str | None:
        assert process.stdin and process.stdout
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)
        busy, limit, text = "its process did not start", time.monotonic() + BOOT, b""
        up = finishing = False
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdout, selectors.EVENT_READ)
            while True:
                if outgoing:
                    outgoing = outgoing[_write(process.stdin, outgoing) :]
                elif self._ending and up and not finishing:
                    # From here on a single limit covers all remaining calls.
                    finishing, limit, outgoing = True, time.monotonic() + self.timeout, b"finish\n"
                if time.monotonic() > limit:
                    return f"no answer within {self.timeout if up else BOOT:g} s ({busy})"
                if not ready.select(0.05 if self._ending or outgoing else 0.25):
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
                    if not finishing:
                        limit = time.monotonic() + self.timeout if message.get("busy") else float("inf")
                    if "note" in message or "warning" in message:
                        self._children = _children(process)

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        for victim in [*_children(process), *self._children]:
            with contextlib.suppress(psutil.Error):
                victim.kill()
        process.kill()
        process.wait()


def _start(errors: IO[bytes] | int) -> subprocess.Popen[bytes]:
    # -P: the current folder must not come before the packages that this process uses.
    return subprocess.Popen(
        [sys.executable, "-P", "-m", f"{__package__}.host"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        bufsize=0,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        start_new_session=True,  # Ctrl-C must only reach the run
    )


def _write(pipe: IO[bytes], content: bytes) -> int:
    """Number of bytes that the pipe has accepted. All for a broken pipe: the process's output says why it ended."""
    try:
        return pipe.write(content) or 0
    except BlockingIOError:
        return 0
    except BrokenPipeError:
        return len(content)


@contextlib.contextmanager
def _error_log(path: Path) -> Any:
    """A file for the process's standard error, which is deleted if it stays empty."""
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
    """Digests of the lines that this tracker got before; read before the run drops those after its checkpoint."""
    try:
        content = json.loads((folder / FILENAME).read_text(encoding="utf-8"))
        sent = content["sent"] if content["name"] == name else {}
        return {file: digests(folder / file, int(sent.get(file, 0))) for file in (METRICS, RANKS)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
