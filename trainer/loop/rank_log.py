"""Writes ranks.jsonl: the ranks of all layers, one line whenever they differ from the line before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trainer.loop.jsonl_log import JsonlLog


class RankLog:
    """Writes a line when the ranks have changed.

    ranks: rank by layer in the last line, None without a line; every checkpoint includes it.
    """

    def __init__(self, path: Path, writes: bool) -> None:
        self._log = JsonlLog(path, writes=writes)
        self.ranks: dict[str, int] | None = None

    def write(self, step: int, ranks: Mapping[str, int]) -> None:
        """Writes the ranks after `step` if they differ from the last line's; a method without ranks writes none."""
        if ranks and ranks != self.ranks:
            self.ranks = dict(ranks)
            self._log.write(step, ranks=self.ranks)

    def forget_after(self, step: int) -> None:
        """Removes the lines of later steps."""
        self._log.forget_after(step)
