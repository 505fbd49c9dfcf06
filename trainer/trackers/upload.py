"""Uploads a run that has ended: a tracker gets the run's files as it would have got them while the run went on.

A run that the tracker shows already is left alone: uploading it again would draw its curve twice.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, Protocol

import yaml

from trainer import record as records
from trainer.errors import message
from trainer.machine.secrets import scrubbed
from trainer.record import Record
from trainer.trackers.host import FILENAME, METRICS, RANKS, Host
from trainer.trackers.tail import Tail
from trainer.trackers.tracker import RunInfo, Started, Tracker


class CannotUpload(Exception):
    """The run can't be uploaded; one line that says why, without the run."""


class Destination(Tracker, Protocol):
    """A tracker that can say whether it shows a run already."""

    def already(self, run: RunInfo, rows: int, url: str | None) -> str | None:
        """Why the run need not, or must not, be uploaded; None if the tracker doesn't show it. Called before `start`.

        rows: the number of rows that the tracker has of a run that was logged to its end. url: where the run was
        shown before, as its folder says.
        """


def info(folder: Path, record: Record) -> RunInfo:
    """The run as its tracker would have seen it. Raises `CannotUpload` where its files don't say enough."""
    try:
        config = yaml.safe_load((folder / records.CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CannotUpload(f"no {records.CONFIG}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CannotUpload(f"{records.CONFIG}: can't be read ({message(error)})") from None
    if not isinstance(config, dict):
        raise CannotUpload(f"{records.CONFIG}: no settings in it")
    named = (record.study, record.variant, record.task, record.model, record.seed)
    return RunInfo(folder.absolute(), record.run_id, *named, config=config, pid=os.getpid())


def rows(folder: Path) -> int:
    """The rows that a tracker gets of a run: the lines of its logs and its record."""
    return 1 + sum(len(Tail(folder / name).fresh()) for name in (METRICS, RANKS))


def upload(run: RunInfo, tracker: Destination, name: str) -> Started | str:
    """Uploads the run, or returns why it was left alone. name: of the tracker. Raises `CannotUpload`."""
    before = _shown(run.folder)
    url = before.get("url") if before.get("name") == name else None
    try:
        with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):  # the libraries' own chatter
            if (why := tracker.already(run, rows(run.folder), url)) is not None:
                return why
            # What another tracker has written of the run, a link to it as a rule, stays.
            host = Host(tracker, run, name, {}, keeps=before.get("name") in (None, name))
            host.serve(_ignore, lambda _: True)
    except Exception as error:  # of W&B, of trackio, of the network: there is no common one
        raise CannotUpload(scrubbed(f"{type(error).__name__}: {message(error)}")) from None
    return host.started


def _shown(folder: Path) -> dict[str, Any]:
    """What `tracker.json` says of where the run is shown; empty where there is none or it can't be read."""
    try:
        content = json.loads((folder / FILENAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _ignore(**_: Any) -> None:
    """Takes the messages that a live run's process reads."""
