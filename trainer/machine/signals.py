"""A run that is asked to stop does so after its step, with a checkpoint, and leaves no failed record.

SIGTERM, SIGUSR1, SIGUSR2 and SIGINT ask: a cluster preempts a job, a time limit is near, somebody stops a machine or
presses Ctrl-C. The run then ends with `Interrupted`, and the same command goes on from that step. A second signal
stops it at once. Whoever listened to the signal before (submitit does, to queue the job again) is told when the
checkpoint is on disk.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

log = logging.getLogger(__name__)

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT") if hasattr(signal, name))


class Interrupted(BaseException):
    """The run stopped before its end; what it made is in its checkpoints. Not an error: a sweep ends with it too.

    number: of the signal that asked for it, 0 where the run's lock was lost.
    """

    def __init__(self, number: int, text: str) -> None:
        super().__init__(number, text)
        self.number, self.text = number, text

    @property
    def exit_code(self) -> int:
        """As a shell says that a signal ended a process."""
        return 128 + self.number if self.number else 1


@dataclass(frozen=True)
class _Request:
    number: int
    text: str


_request: _Request | None = None


def asked() -> bool:
    """Whether the run is to stop with a checkpoint after the step it makes."""
    return _request is not None and _request.number > 0


def check(saved: bool = False) -> None:
    """Raises `Interrupted` if the run is to stop now; called between two steps.

    saved: whether this or another process was asked to stop, and a checkpoint was written for it. A signal that came
    later waits for the next step's. A run whose lock is lost stops without one.
    """
    if _request is not None and (saved or _request.number == 0):
        raise Interrupted(_request.number, _request.text)
    if saved:
        raise Interrupted(signal.SIGTERM, "another process of this run was asked to stop")


def lost(text: str) -> None:
    """Stops the run after its step, without a checkpoint: it is another process's now. From any thread."""
    global _request
    log.error("%s; this process stops", text)
    _request = _Request(0, text)


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Within it the signals ask the run to stop; nothing is listened to outside of the main thread.

    Raises `Interrupted` at the end if a signal came too late to stop the run: nothing else is to begin then.
    """
    global _request
    _request = None
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            # submitit takes no notice of SIGTERM, which Slurm sends beside the signal that matters.
            if number != signal.SIGTERM or signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, _note)
    asking: Interrupted | None = None
    try:
        yield
        if asked():
            check(saved=True)
    except Interrupted as stop:
        asking = stop
        raise
    finally:
        _request = None
        for number, handler in before.items():
            signal.signal(number, handler)
        if asking is not None:
            listener = before.get(asking.number)
            if callable(listener) and listener is not signal.default_int_handler:  # which would only raise again
                listener(asking.number, None)


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Within it SIGTERM raises `Interrupted` at once: for a sweep whose runs are in processes that end with it."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number, signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _note(number: int, frame: FrameType | None) -> None:
    global _request
    name = signal.Signals(number).name
    if _request is not None:
        raise Interrupted(number, f"{name} again")
    _request = _Request(number, name)
    log.warning("%s: the run stops after this step, with a checkpoint; a second signal stops it at once", name)
