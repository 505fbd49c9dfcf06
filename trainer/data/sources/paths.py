"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str) -> Path:
    """`path` with a leading `~` or `~user` as the home folder; as it is where there is no such user."""
    return Path(os.path.expanduser(path))
