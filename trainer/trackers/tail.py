"""Reads a file of lines while another process appends to it or replaces it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path


def digest(line: bytes) -> str:
    """A hash that identifies a line."""
    return hashlib.blake2b(line, digest_size=8).hexdigest()


def digests(path: Path, count: int) -> list[str]:
    """Hashes of the first `count` complete lines of a file; none if it does not exist."""
    try:
        return [digest(line) for line in _whole(path.read_bytes())[:count]]
    except FileNotFoundError:
        return []


class Tail:
    """A growing file. seen: digests of the lines that were read before.

    A run that resumes from a checkpoint replaces its files by shorter ones and appends the rest again. Lines that are
    the same as before are not returned again; from the first line that differs, all are.
    """

    def __init__(self, path: Path, seen: Sequence[str] = ()) -> None:
        self.path = path
        self.seen = list(seen)
        self._file: int | None = None  # the inode that `_offset` belongs to
        self._offset = self._lines = 0

    def fresh(self) -> list[bytes]:
        """The complete lines that are new since the last call."""
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
        hashed, number = digest(line), self._lines
        self._lines += 1
        if number < len(self.seen):
            if self.seen[number] == hashed:
                return False
            del self.seen[number:]
        self.seen.append(hashed)
        return True


def _whole(content: bytes) -> list[bytes]:
    return [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]


def _inode(handle: int) -> int:
    import os

    return os.fstat(handle).st_ino


def count(tails: Iterable[Tail]) -> dict[str, int]:
    """Number of lines read of each file, by its name."""
    return {tail.path.name: len(tail.seen) for tail in tails}
