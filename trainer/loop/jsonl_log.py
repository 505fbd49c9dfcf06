"""`metrics.jsonl` and `ranks.jsonl`: what a run logs while it goes, one object per line.

A run that was interrupted forgets the lines written after the checkpoint it goes on from, so
that the files equal those of a run that was never interrupted.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


class Journal:
    """Appends to one file. Every line has a `step`; numbers that are not finite become null.

    writes: False for the processes of a run that leave its files to the first one.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path = path
        self.writes = writes

    def write(self, step: int, **values: Any) -> None:
        if not self.writes:
            return
        line = {"step": step} | {name: _plain(value) for name, value in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def forget_after(self, step: int) -> None:
        """Drops the lines of later steps, and a last line that was only half written."""
        if not self.writes or not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                break
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, self.path)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
