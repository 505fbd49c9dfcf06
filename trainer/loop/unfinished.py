"""What only an unfinished run has in its folder. Imports no torch: a sweep clears it away where it plans."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

CHECKPOINTS = "checkpoints"
BEST = "best"
NEW_BEST = ".best.new"  # the next one, while it is written
_NAMES = (CHECKPOINTS, BEST, NEW_BEST)


def remains(folder: Path) -> bool:
    """Whether something of it is there."""
    return any(os.path.isdir(folder / name) for name in _NAMES)


def remove(folder: Path) -> None:
    """Removes it from a run's folder; another process may do the same."""
    for name in _NAMES:
        shutil.rmtree(folder / name, ignore_errors=True)
