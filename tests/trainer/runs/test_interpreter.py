"""Runs in interpreters of their own, as a user starts them.

Nothing in a run comes in the order of a set of names: Python draws the seed of its hashes anew for each process, so
that one process alone can't tell. A run imports what it uses, and nothing else: imports are most of the seconds before
its first step. What can't be is one line on standard error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, tiny_run, write_csv

pytestmark = pytest.mark.slow

# Classes that are equal as numbers, methods with several layers, groups of parameters and states, and PEFT's sets.
SETTINGS = [
    ["variant=lora", "variant.targets=[query,value,dense]", "optim.head_lr=5e-3", "optim.weight_decay=0.1"],
    ["variant=adalora", "data.protocol=split", "data.limit=24"],
    ["variant=sparse"],
    ["variant=peft_lora", "variant.targets=[query,key,value]"],
]

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

# One that can't be, the first of the settings as a command, the others without Hydra's work.
CARRY_OUT = """
import hashlib, json, runpy, sys

settings = json.loads(sys.argv[1])
for overrides in ([*settings[0], "variant.rank=0"], settings[0]):
    if "hydra" in sys.modules:
        from hydra.core.global_hydra import GlobalHydra
        GlobalHydra.instance().clear()
    sys.argv = ["train.py", *overrides]
    try:
        runpy.run_path("train.py", run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):  # as Python does it
            code = print(code, file=sys.stderr) or 1
    for file in (sys.stdout, sys.stderr):
        print("ended", code, *sys.modules, file=file, flush=True)

from pathlib import Path
import pandas as pd
import torch
from tests.composing import composed
from trainer import record
from trainer.sweeps.plan import plan
from trainer.runs.run import run

torch.set_num_threads(1)
for overrides in settings:
    planned = plan(composed(overrides))
    row = planned.record or run(planned, [])
    files = [file for file in sorted((planned.folder / "adapter").rglob("*")) if file.is_file()]
    found = pd.read_parquet(planned.folder / "predictions.parquet").to_json(double_precision=15)
    print("run", planned.run_id, row.metrics, row.data.classes, found)
    print("adapter", [(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files])
"""


def test_a_run_has_the_same_bits_under_every_hash_seed_and_imports_no_library_that_it_does_not_use(
    tiny_model: Path, tmp_path: Path
) -> None:
    for number, name in enumerate(("train.csv", "validation.csv")):
        path = write_csv(tmp_path / name, 32, number)
        path.write_text(path.read_text().replace(",good", ",1").replace(",bad", ",01"))
    processes = []
    for seed in ("1", "5"):  # of these two a set of "1" and "01" has either order
        base = tiny_run(tiny_model, (tmp_path / "train.csv", tmp_path / "validation.csv"), tmp_path / seed)
        runs = [[*base, "train.max_steps=3", "train.epochs=1", *settings] for settings in SETTINGS]
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", CARRY_OUT, json.dumps(runs)],
                cwd=ROOT,
                env=os.environ | {"PYTHONHASHSEED": seed, "LORATORY_CACHE": str(tmp_path / seed / "cache")},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    outcomes = []
    for process in processes:
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        lines = out.splitlines()
        outcomes.append([line for line in lines if line.startswith(("run ", "adapter "))])

        # What can't be.
        refused, (said, *_) = lines[0].split(), error.splitlines()
        assert refused[:2] == ["ended", "1"], "nothing on standard output"
        assert said == "error: variant.rank: 0, allowed: a whole number ≥ 1"
        assert error.splitlines()[1].startswith("ended 1 ")

        # What was imported.
        (code, *imported) = next(line for line in lines[1:] if line.startswith("ended ")).split()[1:]
        assert code == "0", error
        assert {"torch", "transformers", "variants.lora"} <= set(imported)
        assert set(imported).isdisjoint(UNUSED)

    one, other = outcomes
    assert len(one) == len(other) == 2 * len(SETTINGS)
    for number, settings in enumerate(SETTINGS):
        assert one[2 * number : 2 * number + 2] == other[2 * number : 2 * number + 2], settings[0]
        assert "['01', '1']" in one[2 * number]
