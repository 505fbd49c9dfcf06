"""Writes a run's logs, `metrics.jsonl` and `ranks.jsonl`, with one JSON object per line.

A resumed run drops the lines written after its checkpoint, so that its files equal those of an uninterrupted run.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


class JsonlLog:
    """Appends lines to a file. Every line has a `step`; numbers that are not finite become null.

    writes: False in all processes of a run but the first, which writes its files.
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
        """Drops the lines of later steps and an incomplete last line."""
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
