"""What a tracker is, and what it is told of a run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class RunInfo:
    """The run that is logged.

    folder: absolute, where its files are. config: resolved and nested, as in config.yaml. pid: of the process
    that trains.
    """

    folder: Path
    run_id: str
    study: str
    variant: str
    task: str
    model: str
    seed: int
    config: dict[str, Any]
    pid: int

    @property
    def name(self) -> str:
        """How the run is called on a dashboard; no other run of the study is called so."""
        return f"{self.variant}-{self.task}-{self.seed}-{self.run_id}"

    @property
    def key(self) -> str:
        """Twenty-one characters that name the run among those of all studies, the same whenever it goes on."""
        return f"{self.run_id}-{hashlib.sha256(self.study.encode()).hexdigest()[:8]}"


def shortened(text: str, most: int) -> str:
    """`text` in at most `most` characters: what is cut from its middle is told from others by a hash of the whole."""
    if len(text) <= most:
        return text
    mark = f"…{hashlib.sha256(text.encode()).hexdigest()[:8]}…"
    left = most - len(mark)
    return text[: left - left // 2] + mark + text[len(text) - left // 2 :]


@dataclass(frozen=True)
class Started:
    """Where the run is shown. note: for the terminal, one line. url: None where there is no server."""

    project: str
    group: str
    run: str
    note: str
    url: str | None = None
    warning: str | None = None  # in place of the note, where something is not as it was asked for


class Tracker(Protocol):
    """A dataclass whose fields are the settings in conf/tracker.

    It is made twice: in the run's process for `check` alone, which must come up at once and so imports no
    tracker's library, and in the tracker's process for the rest. Any error there switches the tracker off.
    """

    timeout: float  # seconds that `start`, one `log` or the end may take before the tracker is given up

    def check(self) -> None:
        """Raises `ConfigError` for settings that can't work, before anything costly starts."""

    def start(self, run: RunInfo) -> Started:
        """Opens the run; one that was opened before goes on."""

    def log(self, row: dict[str, Any]) -> None:
        """Takes a row: `step` and numbers by name, None where one is not finite."""

    def finish(self, record: dict[str, Any] | None, ranks: list[dict[str, Any]]) -> None:
        """Closes the run.

        record: the flat row of record.json, None where the run was interrupted. ranks: the lines of ranks.jsonl.
        """
