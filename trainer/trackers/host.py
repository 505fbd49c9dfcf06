"""The tracker's process: `python -m trainer.trackers.host`, started by guard.py.

Standard input has one line, a JSON object with the tracker's config and the run, and later the word `finish`. If it
ends without that word, the run's process has died. Standard output has JSON objects, one per line:

    {"busy": "start"}, {"busy": null}    a call of the tracker begins, has ended
    {"note": …}, {"warning": …}          for the terminal
    {"failed": …}                        the tracker has raised; the last message
    {"done": true}                       the tracker has been closed; the last message
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from trainer import record
from trainer.errors import message
from trainer.instantiate import make
from trainer.machine.secrets import scrubbed
from trainer.record_text import write_json
from trainer.trackers import rows
from trainer.trackers.tail import Tail, count
from trainer.trackers.tracker import RunInfo, Started, Tracker

FILENAME = "tracker.json"  # in a run's folder: address of the run, and number of lines sent
METRICS, RANKS = "metrics.jsonl", "ranks.jsonl"
EVERY = 0.5  # seconds between two reads of the files


class Host:
    """One tracker and its run."""

    def __init__(
        self, tracker: Tracker, run: RunInfo, name: str, seen: dict[str, list[str]], keeps: bool = True
    ) -> None:
        """keeps: whether to write where the run is shown into its folder."""
        self.tracker, self.run, self.name, self.keeps = tracker, run, name, keeps
        self.tails = [Tail(run.folder / file, seen.get(file, ())) for file in (RANKS, METRICS)]

    def serve(self, say: Callable[..., None], wait: Callable[[float], bool | None]) -> None:
        """Gives new lines of the files to the tracker until the run ends. say: a message. wait: see `_command`."""
        say(busy="start")
        self.started = self.tracker.start(self.run)
        say(busy=None, **{"warning" if self.started.warning else "note": self.started.warning or self.started.note})
        self._keep(self.started)
        ended = None
        while ended is None:
            ended = wait(EVERY)  # before the files are read, so that all lines written before the end are included
            fresh = sorted(self._fresh(), key=lambda row: row["step"])
            for row in fresh:
                say(busy="log")
                self.tracker.log(row)
            say(busy=None)
            if fresh:
                self._keep(self.started)
        say(busy="finish")
        content = record.read(self.run.folder) if ended else None
        self.tracker.finish(None if content is None else content.row(), _lines(self.run.folder / RANKS))
        say(busy=None)

    def _fresh(self) -> list[dict[str, Any]]:
        ranks, metrics = (list(map(json.loads, tail.fresh())) for tail in self.tails)
        return [*map(rows.of_ranks, ranks), *metrics]

    def _keep(self, started: Started) -> None:
        if not self.keeps:
            return
        where = {"project": started.project, "group": started.group, "run": started.run, "url": started.url}
        write_json(self.run.folder / FILENAME, {"name": self.name, **where, "sent": count(self.tails)})


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Tail(path).fresh()]


def _command(seconds: float) -> bool | None:
    """Waits for the run's process: True if the run has ended, False if its process has died, else None."""
    if not select.select([0], [], [], seconds)[0]:
        return None
    return os.read(0, 1 << 10) != b""


def main() -> None:
    """Serves one run."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)  # meant for the run, with which this process ends
    # Output of libraries must not mix with the messages, and a key that they print must not reach a log.
    channel, errors = (os.fdopen(os.dup(number), "w", encoding="utf-8") for number in (1, 2))
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)

    def say(**message: Any) -> None:
        try:
            channel.write(json.dumps({name: _clean(value) for name, value in message.items()}) + "\n")
            channel.flush()
        except BrokenPipeError:
            pass  # the run's process has died; the tracker still finishes

    order = json.loads(_first_line())
    try:
        run = RunInfo(**order["run"] | {"folder": Path(order["run"]["folder"])})
        tracker: Tracker = make("tracker", OmegaConf.create(order["tracker"]))

        def wait(seconds: float) -> bool | None:
            ended = _command(seconds)
            if ended is False:
                _leave_after(tracker.timeout)
            return ended

        Host(tracker, run, order["name"], order["seen"]).serve(say, wait)
    except Exception as error:
        print(scrubbed(traceback.format_exc()), file=errors, flush=True)
        text = message(error)
        say(failed=f"{type(error).__name__}: {text}" if text else type(error).__name__)
        os._exit(1)  # the exit handlers of a failed library may hang
    say(done=True)


def _first_line() -> bytes:
    """Reads byte by byte, because a buffered reader would consume what follows."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 1)
        if not part:
            sys.exit("the run's process died at once")
        line += part
    return line


def _leave_after(seconds: float) -> None:
    """Ends this process after a delay, because after the death of the run's process nobody else would."""
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _clean(value: Any) -> Any:
    return scrubbed(value) if isinstance(value, str) else value


if __name__ == "__main__":
    main()
