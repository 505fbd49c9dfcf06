"""The tracker's process: `python -m trainer.trackers.host`, started by guard.py.

On standard input comes one line, a JSON object with the tracker's config and the run, and later the word
`finish`; its end without that word means that the run's process is gone. On standard output go JSON objects,
one a line:

    {"busy": "start"}, {"busy": null}    a call of the tracker begins, is over
    {"note": …}, {"warning": …}          for the terminal
    {"failed": …}                        the tracker has raised; the last word
    {"done": true}                       the tracker has been closed; the last word
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

FILENAME = "tracker.json"  # in a run's folder: where the run is shown, and how many lines have been sent
METRICS, RANKS = "metrics.jsonl", "ranks.jsonl"
EVERY = 0.5  # seconds between two looks at the files


class Host:
    """One tracker and the run that it shows."""

    def __init__(
        self, tracker: Tracker, run: RunInfo, name: str, seen: dict[str, list[str]], keeps: bool = True
    ) -> None:
        """keeps: whether to write where the run is shown into its folder."""
        self.tracker, self.run, self.name, self.keeps = tracker, run, name, keeps
        self.tails = [Tail(run.folder / file, seen.get(file, ())) for file in (RANKS, METRICS)]

    def serve(self, say: Callable[..., None], wait: Callable[[float], bool | None]) -> None:
        """Follows the files until the run ends. wait: see `_command`."""
        say(busy="start")
        self.started = self.tracker.start(self.run)
        say(busy=None, **{"warning" if self.started.warning else "note": self.started.warning or self.started.note})
        self._keep(self.started)
        ended = None
        while ended is None:
            ended = wait(EVERY)  # first this, then the files: what was written before the end is read after it
            found = sorted(self._fresh(), key=lambda row: row["step"])
            for row in found:
                say(busy="log")
                self.tracker.log(row)
            say(busy=None)
            if found:
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
    """Waits for the run's process: True when the run has ended, False when its process is gone, else None."""
    if not select.select([0], [], [], seconds)[0]:
        return None
    return os.read(0, 1 << 10) != b""


def main() -> None:
    """Serves one run."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)  # meant for the run; when that ends, so does this
    # What libraries print is chatter; it must not get between the lines, nor a key of theirs into a log.
    channel, errors = (os.fdopen(os.dup(number), "w", encoding="utf-8") for number in (1, 2))
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)

    def say(**message: Any) -> None:
        try:
            channel.write(json.dumps({name: _clean(value) for name, value in message.items()}) + "\n")
            channel.flush()
        except BrokenPipeError:
            pass  # nobody is left to listen; what was logged is still brought to its end

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
        os._exit(1)  # a library that is in trouble may hang in its exit handlers
    say(done=True)


def _first_line() -> bytes:
    """Read byte by byte: a buffered reader would swallow the word that may follow."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 1)
        if not part:
            sys.exit("the run's process was gone at once")
        line += part
    return line


def _leave_after(seconds: float) -> None:
    """Ends this process whatever it is doing then: nobody else would, once the run's is gone."""
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _clean(value: Any) -> Any:
    return scrubbed(value) if isinstance(value, str) else value


if __name__ == "__main__":
    main()
