"""Run folders → records. Whatever can't be used is listed with its reason: nothing is lost silently."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from trainer import record as records
from trainer.record import CorruptRecord, Record


@dataclass(frozen=True, slots=True)
class Run:
    """A record and the folder that it lies in, named as the user named it."""

    folder: Path
    record: Record


@dataclass(frozen=True)
class Duplicate:
    """One run_id in several folders: the run that is used, and the folders that are not."""

    used: Run
    left_out: tuple[Path, ...]
    differs: bool  # the records are not the same


@dataclass
class Found:
    """All that lies below some folders, in an order of its own: by run_id."""

    done: list[Run] = field(default_factory=list)
    failed: list[Run] = field(default_factory=list)
    untrusted: list[str] = field(default_factory=list)  # "path: reason"
    duplicates: list[Duplicate] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)  # "path: reason", for what holds no record at all


def read(roots: Iterable[Path]) -> Found:
    """Reads every record below `roots`. Never raises for what it finds there."""
    found = Found()
    folders: set[Path] = set()
    for root in roots:
        below = list(records.find(root)) if os.path.isdir(root) else []
        folders.update(below)
        if not below:
            found.empty.append(f"{root}: {_why_empty(root)}")
    by_id: dict[str, list[Run]] = {}
    untrusted: dict[Path, str] = {}
    for folder in sorted(folders, key=str):
        run = _read_one(folder)
        if isinstance(run, Run):
            by_id.setdefault(run.record.run_id, []).append(run)
        else:
            untrusted.setdefault(folder.resolve(), run)
    for _, same in sorted(by_id.items()):
        run = _used(same, found.duplicates)
        (found.done if run.record.status == "done" else found.failed).append(run)
    found.untrusted = sorted(untrusted.values())
    found.empty = sorted(set(found.empty))
    return found


def _why_empty(root: Path) -> str:
    # os.path, unlike Path, takes a folder that may not be looked into for one that is not there.
    if not os.path.exists(root):
        return "no such folder"
    return "no record in it" if os.path.isdir(root) else "not a folder"


def _read_one(folder: Path) -> Run | str:
    """The run in a folder, or why it can't be trusted, with the path."""
    try:
        record = records.read(folder)
        if record is None:
            return f"{folder / records.FILENAME}: vanished while the folders were read"
    except CorruptRecord as error:
        return str(error)
    return Run(folder, record)


def _used(same: list[Run], duplicates: list[Duplicate]) -> Run:
    """The one to count among runs of one run_id: a done one, then the newest, then the first by path."""
    if len(same) == 1:
        return same[0]
    # One folder reached on two ways is no duplicate.
    places: dict[Path, Run] = {}
    for run in same:
        places.setdefault(run.folder.resolve(), run)
    ranked = sorted(places.values(), key=lambda run: run.record.finished or "", reverse=True)
    used, *others = sorted(ranked, key=lambda run: run.record.status != "done")
    if others:
        differs = any(run.record != used.record for run in others)
        duplicates.append(Duplicate(used, tuple(sorted(run.folder for run in others)), differs))
    return used
