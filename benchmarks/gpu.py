"""What a machine with CUDA has to show: `make gpu`. One table; a line and nothing else on a machine without.

    python -m benchmarks.gpu [--device cuda:0]

tests          those marked gpu
step cost      benchmarks.step_cost --quick on the device
a run          20 steps on film reviews without dropout, on the device and on the CPU: every task loss, and the metric
two processes  the same run under torchrun, with NCCL and half the rows each, where there are two devices
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.stepper import default_model
from trainer import record as records

LOSS, METRIC = 1e-2, 0.02  # tolerances: of each loss, relative, and of the metric
RUN = ["task=movie", "variant=lora", "model=folder", "data.limit=400", "train.max_steps=20", "machine.log_every=1"]
MODEL = "model"  # the folder of the model without dropout
BATCH = 32  # rows of a step, of all processes
TORCHRUN = ["torch.distributed.run", "--nproc_per_node", "2", "train.py"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda:0", help="cuda:0, cuda:1, …")
    device = parser.parse_args().device
    if not torch.cuda.is_available():
        print("gpu: torch finds no CUDA device on this machine, so nothing was checked")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        without_dropout(default_model()[1], Path(folder) / MODEL)
        checks = {
            "tests marked gpu": lambda: called("pytest", "-q", "-m", "gpu", "tests"),
            "step cost": lambda: called("benchmarks.step_cost", "--quick", "--device", device),
            f"a run on {device}": lambda: compared(Path(folder), device, ["train.py"], BATCH),
        }
        if torch.cuda.device_count() > 1:
            checks["two processes, NCCL"] = lambda: compared(Path(folder), "cuda", TORCHRUN, BATCH // 2)
        rows = []
        for name, check in checks.items():
            begun = time.perf_counter()
            fault = check()
            rows.append((name, fault or "passed", f"{time.perf_counter() - begun:.0f} s"))
    print("| check | result | time |\n|:--|:--|--:|")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return int(any(row[1] != "passed" for row in rows))


def called(*command: str) -> str | None:
    """Calls a module of Python's, or a script; what went wrong, in words."""
    start = [] if command[0].endswith(".py") else ["-m"]
    code = subprocess.run([sys.executable, *start, *command], check=False).returncode
    return f"exit code {code}" if code else None


def without_dropout(source: Path, folder: Path) -> None:
    """Copies a model without the dropout of its backbone and its head, whose masks differ between devices."""
    shutil.copytree(source, folder)
    place = folder / "config.json"
    config = json.loads(place.read_text())
    place.unlink()  # it may be a link
    place.write_text(json.dumps({name: 0 if "drop" in name else value for name, value in config.items()}))


def compared(folder: Path, device: str, start: list[str], batch_size: int) -> str | None:
    """Makes the run on `device` and, once, on the CPU; the first difference beyond the tolerances, in words.

    batch_size: rows of a step on each process.
    """
    for where, how, size in (("cpu", ["train.py"], BATCH), (device, start, batch_size)):
        place = folder / f"{len(how)}-{where}"
        options = [f"machine.device={where}", f"runs_dir={place}", "study=gpu", "machine.progress=false"]
        options += [f"train.batch_size={size}", f"model.path={folder / MODEL}"]
        if not place.exists() and (fault := called(*how, *RUN, *options)):
            return f"on {where}: {fault}"
    return difference(outcome(folder / "1-cpu"), outcome(folder / f"{len(start)}-{device}"))


def outcome(place: Path) -> tuple[list[float], float]:
    """The task losses and the metric of the run in `place`."""
    (record,) = place.glob("gpu/*/record.json")
    lines = [json.loads(line) for line in (record.parent / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/task_loss"] for line in lines if line.get("train/task_loss") is not None]
    found = records.read(record.parent)
    assert found is not None and found.metric.value is not None
    return losses, found.metric.value


def difference(one: tuple[list[float], float], other: tuple[list[float], float]) -> str | None:
    """The first difference of two outcomes beyond the tolerances, in words."""
    if len(one[0]) != len(other[0]):
        return f"{len(other[0])} losses, allowed: {len(one[0])}"
    for step, (mine, others) in enumerate(zip(one[0], other[0], strict=True), 1):
        if not abs(mine - others) <= LOSS * abs(mine):
            return f"loss of step {step}: {others}, allowed: {mine} ± {LOSS:.0%}"
    return None if abs(one[1] - other[1]) <= METRIC else f"metric: {other[1]}, allowed: {one[1]} ± {METRIC}"


if __name__ == "__main__":
    sys.exit(main())
