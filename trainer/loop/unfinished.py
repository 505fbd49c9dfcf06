"""Finds and removes the files that only an unfinished run has. Imports no torch, because planning a sweep uses it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

CHECKPOINTS = "checkpoints"
BEST = "best"
NEW_BEST = ".best.new"  # the next best model while it is written
_NAMES = (CHECKPOINTS, BEST, NEW_BEST)


def remains(folder: Path) -> bool:
    """Whether the run's folder has such files."""
    return any(os.path.isdir(folder / name) for name in _NAMES)


def remove(folder: Path) -> None:
    """Removes these files from a run's folder; another process may remove them at the same time."""
    for name in _NAMES:
        shutil.rmtree(folder / name, ignore_errors=True)
