"""Signals stop a run after its current step, with a checkpoint and without a failed record.

The signals are SIGTERM, SIGUSR1, SIGUSR2 and SIGINT: a cluster preempts a job, a time limit is near, a machine shuts
down, or a user presses Ctrl-C. The run ends with `Interrupted`, and the same command resumes from that step. A second
signal stops the run at once. A sweep passes a signal on to the processes that carry out its runs, and waits for them.
An earlier handler of the signal (submitit's, which queues the job again) is called once the checkpoint is on disk.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT") if hasattr(signal, name))
PASSED_ON = getattr(signal, "SIGUSR1", signal.SIGTERM)  # what a sweep sends; of two signals it is not counted
PAUSE = 0.1  # seconds between two looks at the processes that were asked


class Interrupted(BaseException):
    """The run stopped before its end and can resume from its checkpoints. It ends a sweep too and is not an error.

    number: number of the signal, 0 if the run's lock was lost.
    """

    def __init__(self, number: int, text: str) -> None:
        super().__init__(number, text)
        self.number, self.text = number, text

    @property
    def exit_code(self) -> int:
        """128 + signal number, as a shell reports it."""
        return 128 + self.number if self.number else 1


@dataclass(frozen=True)
class _Request:
    number: int
    text: str


_request: _Request | None = None


def asked() -> bool:
    """Whether a signal asked the run to stop with a checkpoint after its current step."""
    return _request is not None and _request.number > 0


def check(saved: bool = False) -> None:
    """Raises `Interrupted` if the run must stop now; called between two steps.

    saved: whether this or another process was asked to stop and a checkpoint was written for it. A signal that arrives
    later waits for the checkpoint of the next step. A run that has lost its lock stops without a checkpoint.
    """
    if _request is not None and (saved or _request.number == 0):
        raise Interrupted(_request.number, _request.text)
    if saved:
        raise Interrupted(signal.SIGTERM, "another process of this run was asked to stop")


def lose_lock(text: str) -> None:
    """Stops the run after its step and without a checkpoint, because another process owns it now. Thread-safe."""
    global _request
    log.error("%s; this process stops", text)
    _request = _Request(0, text)


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Handles the signals as requests to stop the run; outside the main thread it does nothing.

    Raises `Interrupted` at its end if a signal arrived too late to stop the run, so that no other run starts.
    """
    global _request
    _request = None
    earlier = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            # submitit ignores SIGTERM on purpose: Slurm sends it together with the signal that matters.
            if number != signal.SIGTERM or signal.getsignal(number) is signal.SIG_DFL:
                earlier[number] = signal.signal(number, _request_stop)
    interruption: Interrupted | None = None
    try:
        yield
        if asked():
            check(saved=True)
    except Interrupted as stop:
        interruption = stop
        raise
    finally:
        _request = None
        for number, handler in earlier.items():
            signal.signal(number, handler)
        if interruption is not None:
            listener = earlier.get(interruption.number)
            if callable(listener) and listener is not signal.default_int_handler:  # Python's own would raise again
                listener(interruption.number, None)


@contextlib.contextmanager
def passing_on(running: Callable[[], Collection[tuple[Any, int]]]) -> Iterator[None]:
    """Passes a signal on to other processes and raises `Interrupted` when they have stopped; at a second one at once.

    running: the runs that other processes carry out now, each with the number of its process.
    """
    stopping = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        name = signal.Signals(number).name
        if stopping:
            raise Interrupted(number, f"{name} again")
        stopping = True
        asked: set[tuple[Any, int]] = set()
        while left := set(running()):
            for _, process in left - asked:
                # Ctrl-C in a terminal, and a cluster that ends a job, have signalled them, too.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, PASSED_ON)
            asked |= left
            time.sleep(PAUSE)
        raise Interrupted(number, name)

    earlier: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in map(int, (signal.SIGTERM, signal.SIGINT)):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                earlier[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, former in earlier.items():
            signal.signal(number, former)


def _request_stop(number: int, frame: FrameType | None) -> None:
    global _request
    name = signal.Signals(number).name
    if _request is not None and number == PASSED_ON:
        return  # passed on by a sweep after the run had the signal itself
    # Of two that wait while torch computes, Python handles the lower number first: SIGUSR1 before the run's SIGTERM.
    if _request is not None and _request.number != PASSED_ON:
        raise Interrupted(number, f"{name} again")
    _request = _Request(number, name)
    log.warning("%s: the run stops after this step, with a checkpoint; a second signal stops it at once", name)
