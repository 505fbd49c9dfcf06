"""Finds run folders and decides which of them count. What is skipped is kept with the reason."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from trainer import record as records
from trainer.record import Record


class Run(NamedTuple):
    """A record and its folder. path: relative or absolute, as the user wrote it."""

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
    """One run_id in several folders: the folder that is used, and those that are skipped."""

    run_id: str
    used: Path
    left_out: tuple[Path, ...]
    differs: bool  # whether the records differ


@dataclass
class Skipped:
    """What was found below some folders and is not used."""

    duplicates: list[Duplicate] = field(default_factory=list)
    _untrusted: dict[Path, str] = field(default_factory=dict)
    _begun: set[str] = field(default_factory=set)
    _empty: set[str] = field(default_factory=set)

    @property
    def untrusted(self) -> list[str]:
        """`path: reason` of every record that can't be trusted."""
        return sorted(self._untrusted.values())

    @property
    def begun(self) -> list[str]:
        """Folders of runs without a record: they are running, or were killed."""
        return sorted(self._begun)

    @property
    def empty(self) -> list[str]:
        """`path: reason` of every folder that the user named and that holds no record."""
        return sorted(self._empty)

    def distrust(self, path: str, reason: str) -> None:
        """Skips a record or folder that can't be trusted. The same folder via two paths counts once."""
        folder = Path(path).resolve()
        self._untrusted[folder] = min(reason, self._untrusted.get(folder, reason))

    def add_begun(self, folder: str) -> None:
        self._begun.add(folder)

    def add_empty(self, reason: str) -> None:
        self._empty.add(reason)


def folders(roots: Iterable[Path | str], skipped: Skipped) -> Iterator[str]:
    """The folders below `roots` that hold a record. Folders that can't be read are added to `skipped`.

    A folder below several roots is yielded once for each; `choose` counts it once.
    """
    for root in dict.fromkeys(os.fspath(root) for root in roots):
        errors: list[OSError] = []
        nothing = True
        for folder in records.find(root, unread=errors.append, begun=skipped.add_begun):
            nothing = False
            yield folder
        at_root = [error for error in errors if error.filename == root]
        for error in errors:
            if error not in at_root:
                skipped.distrust(error.filename, f"{error.filename}: {error.strerror}")
        if nothing:
            why = _WHY.get(type(at_root[0]), at_root[0].strerror) if at_root else _NOTHING
            skipped.add_empty(f"{root}: {why}")


_NOTHING = "no record in it"
_WHY: dict[type[OSError], str] = {FileNotFoundError: "no such folder", NotADirectoryError: "not a folder"}


def choose(same: Sequence[Run]) -> tuple[Run, list[Run]]:
    """Of runs with the same run_id, the one that counts and the others.

    Done runs come first, then the newest, then the first by path.
    """
    # The same folder via two paths is not a duplicate.
    by_folder: dict[Path, Run] = {}
    for run in sorted(same, key=lambda run: run.path):
        by_folder.setdefault(Path(run.path).resolve(), run)
    ranked = sorted(by_folder.values(), key=lambda run: run.finished, reverse=True)
    used, *others = sorted(ranked, key=lambda run: not run.done)
    return used, sorted(others, key=lambda run: Path(run.path))
