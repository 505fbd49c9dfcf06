"""A run imports what it uses, and nothing else: imports are most of the seconds before its first step."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

# fsdp comes with torch's own optimizers; that of the suite is in trainer.machine.sharding.
UNUSED = (
    "peft",
    "wandb",
    "trackio",
    "datasets",
    "sklearn",
    "optuna",
    "ray",
    "trainer.machine.sharding",
    "variants.peft",
)

RUN = "import runpy, sys; runpy.run_path('train.py', run_name='__main__'); print(*sys.modules, file=sys.stderr)"


@pytest.mark.slow
def test_a_run_of_lora_imports_no_library_that_it_does_not_use(tiny_overrides):
    command = [sys.executable, "-c", RUN, *tiny_overrides, "variant=lora"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    imported = set(ended.stderr.splitlines()[-1].split())
    assert {"torch", "transformers", "variants.lora"} <= imported
    assert imported.isdisjoint(UNUSED)
