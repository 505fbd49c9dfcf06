"""What a run leaves behind, without what may depend on when and how it was carried out."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from tests.conftest import folder_of
from trainer.record import Record
from variants.core import state_files

CHANGING = ("time.", "started", "finished", "memory.peak", "overrides", "study", "git.", "checksum")


def outcome(record: Record, tmp_path: Path) -> dict[str, object]:
    """All of a run that must not depend on interruptions."""
    folder = folder_of(record, tmp_path)
    row = {name: value for name, value in record.row().items() if not name.startswith(CHANGING)}
    state = state_files.load(folder / "adapter" / "state")
    return {
        "row": row,
        "parameters": {name: tensor.tolist() for name, tensor in state["parameters"].items()},
        "variant": repr(state["variant"]),
        "metrics": (folder / "metrics.jsonl").read_text(),
        "ranks": (folder / "ranks.jsonl").read_text() if (folder / "ranks.jsonl").exists() else "",
        "predictions": pd.read_parquet(folder / "predictions.parquet").to_json(),
        "files": sorted(path.name for path in folder.iterdir()),
    }
