"""What a tracker must not touch of a run, and what it says when it fails."""

from __future__ import annotations

import logging
from pathlib import Path

from trainer.record import read
from trainer.trackers import guard


def left_by(folder: Path) -> dict[str, object]:
    """All of a finished run that a tracker must not touch."""
    record = read(folder)
    assert record is not None
    row = {
        name: value
        for name, value in record.row().items()
        if not name.startswith(("time.", "started", "finished", "memory.peak", "overrides", "checksum"))
    }
    return {
        "row": row,
        "files": {path.name for path in folder.iterdir()} - {"tracker.json", guard.LOG, "wandb"},
        "metrics": (folder / "metrics.jsonl").read_text(),
        "ranks": (folder / "ranks.jsonl").read_text(),
        "adapter": (folder / "adapter" / "state.safetensors").read_bytes(),
        "predictions": (folder / "predictions.parquet").read_bytes(),
    }


def warnings(caplog) -> list[str]:
    return [
        entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING and "tracker" in entry.name
    ]
