"""Run folders, and which of them count. Whatever can't be used is listed with its reason: nothing is lost silently."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from trainer import record as records
from trainer.record import Record


class Run(NamedTuple):
    """A record and the folder that it lies in, named as the user named it."""

    path: str
    record: Record

    @property
    def folder(self) -> Path:
        return Path(self.path)

    @property
    def done(self) -> bool:
        return self.record.status == "done"

    @property
    def finished(self) -> str:
        return self.record.finished or ""


@dataclass(frozen=True)
class Duplicate:
    """One run_id in several folders: the one that is used, and those that are not."""

    run_id: str
    used: Path
    left_out: tuple[Path, ...]
    differs: bool  # the records are not the same


@dataclass
class Skipped:
    """What lies below some folders and is not used."""

    duplicates: list[Duplicate] = field(default_factory=list)
    _untrusted: dict[Path, str] = field(default_factory=dict)
    _begun: set[str] = field(default_factory=set)
    _empty: set[str] = field(default_factory=set)

    @property
    def untrusted(self) -> list[str]:
        """`path: reason` for every record that can't be trusted."""
        return sorted(self._untrusted.values())

    @property
    def begun(self) -> list[str]:
        """Every folder of a run that has left no record yet."""
        return sorted(self._begun)

    @property
    def empty(self) -> list[str]:
        """`path: reason` for every folder, as it was named, that holds no record at all."""
        return sorted(self._empty)

    def distrust(self, path: str, reason: str) -> None:
        """A record, or a folder, that can't be trusted; one reached on two ways counts once."""
        place = Path(path).resolve()
        self._untrusted[place] = min(reason, self._untrusted.get(place, reason))

    def add_begun(self, folder: str) -> None:
        self._begun.add(folder)

    def add_empty(self, reason: str) -> None:
        self._empty.add(reason)


def folders(roots: Iterable[Path | str], listed: Skipped) -> Iterator[str]:
    """The folders below `roots` that hold a record; what can't be looked into goes to `listed`.

    One below several of them comes as often: `choose` sees that it is one.
    """
    for root in dict.fromkeys(os.fspath(root) for root in roots):
        errors: list[OSError] = []
        nothing = True
        for folder in records.find(root, unread=errors.append, begun=listed.add_begun):
            nothing = False
            yield folder
        at_root = [error for error in errors if error.filename == root]
        for error in errors:
            if error not in at_root:
                listed.distrust(error.filename, f"{error.filename}: {error.strerror}")
        if nothing:
            why = _WHY.get(type(at_root[0]), at_root[0].strerror) if at_root else _NOTHING
            listed.add_empty(f"{root}: {why}")


_NOTHING = "no record in it"
_WHY: dict[type[OSError], str] = {FileNotFoundError: "no such folder", NotADirectoryError: "not a folder"}


def choose(same: Sequence[Run]) -> tuple[Run, list[Run]]:
    """Of runs with one run_id the one to count, and the others: a done one, then the newest, then the first by path."""
    if len(same) == 1:
        return same[0], []
    # One folder reached on two ways is no duplicate.
    places: dict[Path, Run] = {}
    for run in sorted(same, key=lambda run: run.path):
        places.setdefault(Path(run.path).resolve(), run)
    ranked = sorted(places.values(), key=lambda run: run.finished, reverse=True)
    used, *others = sorted(ranked, key=lambda run: not run.done)
    return used, sorted(others, key=lambda run: Path(run.path))
