"""Trackers that do what trackers should not, by name: `tracker.how`."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.trackers.tracker import RunInfo, Started


@dataclass(kw_only=True)
class Trouble:
    """how: what happens, and in which call: `raises in start`, `hangs in log`, `dies in finish`, …"""

    how: str = ""
    timeout: float = 3.0

    def check(self) -> None:
        pass

    def start(self, run: RunInfo) -> Started:
        self._folder = Path(run.folder)
        self._happens("start")
        return Started("p", run.study, run.name, "ready")

    def log(self, row: dict[str, Any]) -> None:
        self._happens("log")

    def finish(self, record: dict[str, Any] | None, ranks: list[dict[str, Any]]) -> None:
        self._happens("finish")
        (self._folder.parent / "finished").write_text(str(record))

    def _happens(self, call: str) -> None:
        if not self.how.endswith(f" in {call}"):
            return
        how = self.how.partition(" ")[0]
        if how == "raises":
            raise RuntimeError(f"no luck with {os.environ.get('SOME_API_KEY', 'this')}")
        if how == "hangs":
            time.sleep(1000)
        if how == "stops":
            os.kill(os.getpid(), signal.SIGSTOP)
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "exits":
            raise SystemExit(3)
        if how == "shouts":
            os.write(1, b"x" * 1_000_000)
            print("y" * 1_000_000)


class NoTracker:
    """Has none of a tracker's methods."""
