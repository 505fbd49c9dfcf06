"""The interface of a tracker, and what it knows of a run."""

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
        """The run's name on a dashboard, unique within the study."""
        return f"{self.variant}-{self.task}-{self.seed}-{self.run_id}"

    @property
    def key(self) -> str:
        """Twenty-one characters that identify the run among those of all studies; they stay when it resumes."""
        return f"{self.run_id}-{hashlib.sha256(self.study.encode()).hexdigest()[:8]}"


def shortened(text: str, most: int) -> str:
    """`text` in at most `most` characters. A hash of the whole replaces its middle, so that names stay distinct."""
    if len(text) <= most:
        return text
    digits = f"…{hashlib.sha256(text.encode()).hexdigest()[:8]}…"
    left = most - len(digits)
    return text[: left - left // 2] + digits + text[len(text) - left // 2 :]


@dataclass(frozen=True)
class Started:
    """Where the run is shown. note: one line for the terminal. url: None without a server."""

    project: str
    group: str
    run: str
    note: str
    url: str | None = None
    warning: str | None = None  # replaces the note if a setting could not be met


class Tracker(Protocol):
    """A dataclass whose fields are the settings in conf/tracker.

    It is created twice: in the run's process for `check` alone, which must be fast and so imports no tracker's
    library, and in the tracker's process for the rest. An error there switches the tracker off.
    """

    timeout: float  # most seconds of `start`, of one `log` and of the end; a slower tracker is killed

    def check(self) -> None:
        """Raises `ConfigError` for invalid settings, before anything costly starts."""

    def start(self, run: RunInfo) -> Started:
        """Opens the run, or resumes it if it was opened before."""

    def log(self, row: dict[str, Any]) -> None:
        """Logs a row: `step` and numbers by name; None stands for a number that is not finite."""

    def finish(self, record: dict[str, Any] | None, ranks: list[dict[str, Any]]) -> None:
        """Closes the run.

        record: the flat row of record.json, None if the run was interrupted. ranks: the lines of ranks.jsonl.
        """
