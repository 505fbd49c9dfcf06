"""A file of lines, read while another process appends to it, and where it is replaced, read anew."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path


def digest(line: bytes) -> str:
    """Stands for a line that was read."""
    return hashlib.blake2b(line, digest_size=8).hexdigest()


def digests(path: Path, count: int) -> list[str]:
    """Of the first `count` whole lines of a file; of none where it isn't there."""
    try:
        return [digest(line) for line in _whole(path.read_bytes())[:count]]
    except FileNotFoundError:
        return []


class Tail:
    """`path`, of which the lines with the digests `seen` have been read before.

    A run that goes on from a checkpoint replaces its files by shorter ones and makes the rest again. Lines that
    come out as they were are not given out twice; from the first that differs on, all are.
    """

    def __init__(self, path: Path, seen: Sequence[str] = ()) -> None:
        self.path = path
        self.seen = list(seen)
        self._file: int | None = None  # the inode that `_offset` belongs to
        self._offset = self._lines = 0

    def fresh(self) -> list[bytes]:
        """The whole lines that have come since."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            inode = _inode(file.fileno())
            if inode != self._file:
                self._file, self._offset, self._lines = inode, 0, 0
            file.seek(self._offset)
            lines = _whole(file.read())
        self._offset += sum(map(len, lines))
        return [line for line in lines if self._is_new(line)]

    def _is_new(self, line: bytes) -> bool:
        mark, place = digest(line), self._lines
        self._lines += 1
        if place < len(self.seen):
            if self.seen[place] == mark:
                return False
            del self.seen[place:]
        self.seen.append(mark)
        return True


def _whole(content: bytes) -> list[bytes]:
    return [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]


def _inode(handle: int) -> int:
    import os

    return os.fstat(handle).st_ino


def count(tails: Iterable[Tail]) -> dict[str, int]:
    """Lines that have been read of each file, by its name."""
    return {tail.path.name: len(tail.seen) for tail in tails}
