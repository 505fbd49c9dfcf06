"""A fresh interpreter, for what an import or an environment decides."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.conftest import ROOT


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A fresh interpreter with the repository on its path."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, *arguments], capture_output=True, env=env, timeout=60)
