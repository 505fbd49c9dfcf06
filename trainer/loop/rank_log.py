"""ranks.jsonl: one line per allocation, the ranks of all layers, whenever they are not what they were."""

from __future__ import annotations

from pathlib import Path

from trainer.loop.jsonl_log import Journal
from variants.core.allocation.deferred_ranks import Ranks

MOST_UNREAD = 2**26  # bytes on the device that ranks are told from, and that are held until these are read


class RankLog:
    """Takes the ranks after each step, and reads them later: to read them may be to wait for the device.

    ranks: of the last line, None where there is none; part of every checkpoint.
    """

    def __init__(self, path: Path, writes: bool) -> None:
        self._journal = Journal(path, writes=writes)
        self._unread: list[tuple[int, Ranks]] = []  # of steps since the last line was looked for
        self.ranks: dict[str, int] | None = None

    def take(self, step: int, ranks: Ranks) -> None:
        """Puts the ranks after `step` by."""
        self._unread.append((step, ranks))
        if sum(ranks.bytes for _, ranks in self._unread) > MOST_UNREAD:
            self.write()

    def write(self) -> None:
        """Reads what was put by, and writes a line for each step that changed the ranks."""
        unread, self._unread = self._unread, []
        for step, later in unread:
            if (ranks := later.read()) and ranks != self.ranks:
                self.ranks = ranks
                self._journal.write(step, ranks=ranks)

    def forget_after(self, step: int) -> None:
        """Removes the lines of later steps."""
        self._journal.forget_after(step)
