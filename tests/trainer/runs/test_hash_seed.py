"""A run is the same in every process: nothing in it comes in the order of a set of names.

Python draws the seed of its hashes anew for each process, so that one process alone can't tell.
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

CARRY_OUT = """
import hashlib, json, sys
from pathlib import Path
import pandas as pd
import torch
from tests.composing import composed
from trainer.sweeps.plan import plan
from trainer.runs.run import run

torch.set_num_threads(1)
for number, overrides in enumerate(json.loads(sys.argv[1])):
    planned = plan(composed(overrides))
    record = run(planned, [])
    files = [file for file in sorted((planned.folder / "adapter").rglob("*")) if file.is_file()]
    found = pd.read_parquet(planned.folder / "predictions.parquet").to_json(double_precision=15)
    print("run", planned.run_id, record.metrics, record.data.classes, found)
    print("adapter", [(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files])
"""


@pytest.fixture(scope="module")
def outcomes(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """What the same runs give in two processes with different seeds of hashes."""
    folder = tmp_path_factory.mktemp("hashes")
    for number, name in enumerate(("train.csv", "validation.csv")):
        path = write_csv(folder / name, 32, number)
        path.write_text(path.read_text().replace(",good", ",1").replace(",bad", ",01"))
    processes = []
    for seed in ("1", "5"):  # of these two a set of "1" and "01" has either order
        base = tiny_run(tiny_model, (folder / "train.csv", folder / "validation.csv"), folder / seed)
        runs = [[*base, "train.max_steps=3", "train.epochs=1", *settings] for settings in SETTINGS]
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", CARRY_OUT, json.dumps(runs)],
                cwd=ROOT,
                env=os.environ | {"PYTHONHASHSEED": seed, "LORATORY_CACHE": str(folder / seed / "cache")},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    found = []
    for process in processes:
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        found.append([line for line in out.splitlines() if line.startswith(("run", "adapter"))])
    return found


@pytest.mark.parametrize("number", range(len(SETTINGS)), ids=[settings[0] for settings in SETTINGS])
def test_a_run_has_the_same_bits_under_every_hash_seed(outcomes, number):
    one, other = (lines[2 * number : 2 * number + 2] for lines in outcomes)
    assert len(one) == 2 and one == other
    assert "['01', '1']" in one[0]
