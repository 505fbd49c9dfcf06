"""Expands paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str) -> Path:
    """Replaces a leading `~` or `~user` by the home folder; a path of an unknown user stays unchanged."""
    return Path(os.path.expanduser(path))
