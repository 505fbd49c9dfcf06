"""Offline W&B runs, read back with W&B's own tool."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Inspected:
    """run: as it was opened. summary: as W&B shows it at the end. history: what was logged, row by row."""

    run: dict[str, Any]
    metrics: list[dict[str, Any]]
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    exit_code: int | None
    path: Path

    @property
    def folder(self) -> Path:
        return self.path.parent


def _leet(path: Path, *arguments: str) -> str:
    """What `wandb leet inspect` prints. It is the work of wandb-core, which needs no interpreter that imports W&B."""
    wandb = importlib.util.find_spec("wandb")
    assert wandb is not None and wandb.origin is not None
    core = Path(wandb.origin).parent / "bin" / "wandb-core"
    command = [str(core), "leet", "inspect", "--no-observability", *arguments, "--json"]
    command += [f"--run-file={path}", str(path.parents[1])]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def inspect(path: Path) -> Inspected:
    """The run in a .wandb file. W&B's own entries, whose names begin with _, are left out."""
    records = [json.loads(line) for line in _leet(path).splitlines()]
    found: dict[str, list[Any]] = {}
    for record in records:
        found.setdefault(record["type"], []).append(record[record["type"]])
    whole = json.loads(_leet(path, "--summary"))
    return Inspected(
        run=found["run"][0] | {"config": whole["config"]},
        metrics=found["metric"],
        history=[_own(entry["item"]) for entry in found.get("history", [])],
        summary=_own(whole["summary"]),
        exit_code=found["exit"][0].get("exit_code", 0) if "exit" in found else None,
        path=path,
    )


def _own(entries: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if not name.startswith("_")}


def runs_in(folder: Path) -> list[Inspected]:
    """The offline runs below a folder, in the order in which they began."""
    return [inspect(path) for path in sorted(folder.rglob("*.wandb"))]
