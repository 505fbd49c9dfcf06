"""Sweeps in a process of their own, as a user starts them: the interpreter and all imports included."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT

COMMAND = [sys.executable, "train.py", "-m"]


def start(overrides: list[str], **options) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, *overrides], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def sweep(overrides: list[str]) -> tuple[int, str]:
    """Exit code and output of a whole sweep."""
    process = start(overrides)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output
