"""Cost of planning a sweep: enumerating its runs, composing their configs, finding those that are done.

    python -m benchmarks.scale                 1,000, 10,000 and 100,000 runs; the last takes a quarter of an hour
    python -m benchmarks.scale 1000 5000       other numbers

Each number has a process and a folder of its own. The runs are those of four methods, five rates and many seeds. They
are planned as train.py plans a sweep before anything starts: enumerated, each config composed, checked and hashed, and
its record looked for; once with no record there, and once with a record for every run. At the end stands what Hydra's
own sweeper and launcher do for each job before and after it runs, measured on a few jobs and multiplied.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig
from safetensors.numpy import save_file

from trainer import config as run_config
from trainer import record as records
from trainer.sweeps.sweep import Runs, product

ROOT = Path(__file__).parents[1]
SIZES = (1_000, 10_000, 100_000)
METHODS = "lora,adalora,sora,head"
RATES = "1e-4,2e-4,5e-4,1e-3,5e-3"
JOBS = 30  # for the measurement of Hydra's own sweeper


def overrides(folder: Path, runs: int) -> list[str]:
    """A sweep of `runs` runs. The files of model and task exist but only their fingerprints are read."""
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text('{"model_type": "bert"}')
    (model / "vocab.txt").write_text("[PAD]")
    save_file({"weight": np.zeros(1000, dtype=np.float32)}, model / "model.safetensors")
    for name in ("train", "validation"):
        (folder / f"{name}.csv").write_text("text,label\na fine film,good\na dull film,bad\n")
    return [
        *("model=folder", f"model.path={model}", "model.name=small"),
        *("task=file", f"task.source.train_path={folder / 'train.csv'}", "task.name=small", "task.metrics=[accuracy]"),
        *(f"task.source.validation_path={folder / 'validation.csv'}", f"runs_dir={folder / 'runs'}", "study=large"),
        *(f"variant={METHODS}", f"optim.lr={RATES}", f"seed=range({runs // 20})"),
    ]


def peak() -> float:
    """Peak MiB of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Clock:
    """Sums up the wall and CPU seconds spent inside it."""

    def __init__(self) -> None:
        self.seconds = np.zeros(2)

    def __enter__(self) -> None:
        self.start = np.array([time.perf_counter(), time.process_time()])

    def __exit__(self, *error: object) -> None:
        self.seconds += np.array([time.perf_counter(), time.process_time()]) - self.start

    def read(self) -> list[float]:
        """Returns the sums and resets them."""
        read, self.seconds = self.seconds.tolist(), np.zeros(2)
        return read


def pretend(run: Any) -> None:
    """Writes a finished run's record without the disk sync of a real one."""
    row = records.Record(
        *(run.run_id, "large", run.config.variant.name, "small", "small", run.config.seed),
        config=run.identity.settings,
        identity=run.identity.leaves,
        versions={f"package-{i}": "1.2.3" for i in range(10)},
        metric=records.Metric("accuracy", 0.5, True, "validation", "best", 10),
        metrics={"accuracy": 0.5},
        time=records.Time(1.0, 1.0, 1.0, 1.0),
    ).row()
    run.folder.mkdir(parents=True)
    (run.folder / records.FILENAME).write_text(json.dumps(row, indent=1, sort_keys=True))


def measure(size: int, hydra: bool) -> dict[str, float]:
    """Measures one number of runs in this process."""
    run_config.register()
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place, initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], RunMode.MULTIRUN)
        texts = overrides(Path(place), size)
        if hydra:
            return by_hydra(loader, master, product(loader, texts)[:: size // JOBS])
        before, clock = peak(), Clock()
        with clock:
            runs = Runs(loader, master, product(loader, texts))
        result["runs"], result["enumerate"] = len(runs), clock.read()[0]
        for number in range(len(runs)):
            with clock:
                run = runs.plan(number)
            pretend(run)  # not measured
        result["plan"], result["plan CPU"] = clock.read()
        result["MiB"] = peak() - before
        assert len(os.listdir(run.folder.parent)) == len(runs), "two runs have one name"
        with clock:
            runs = Runs(loader, master, product(loader, texts))
            done = sum(runs.plan(number).done for number in range(len(runs)))
        result["skip"], result["skip CPU"] = clock.read()
        assert done == len(runs), f"{done} of {len(runs)} runs are done"
    return result


def by_hydra(loader: Any, master: DictConfig, jobs: list[list[str]]) -> dict[str, float]:
    """Hydra's own sweeper, per job: CPU seconds to compose it, and bytes that the launcher keeps until the end."""
    loader.load_sweep_config(master, jobs[0])
    start = time.process_time()
    for job in jobs:
        loader.load_sweep_config(master, job)
    seconds = (time.process_time() - start) / len(jobs)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = []
    for job in jobs:
        config = loader.load_sweep_config(master, job)
        kept += [
            copy.deepcopy(config),
            config,
        ]  # JobReturn.cfg with hydra_cfg, and the config that they share
    kept_bytes = (tracemalloc.get_traced_memory()[0] - before) / len(jobs)
    assert len(kept) == 2 * len(jobs)
    return {"compose s": seconds, "bytes": kept_bytes}


def apart(size: int, *options: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scale", str(size), "--one", *options]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=SIZES, metavar="RUNS")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--hydra", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.sizes[0], arguments.hydra)))
        return
    print("|    runs | enumerate s | plan s | CPU ms a run | skip s | CPU ms a run | MiB more | bytes a run |")
    print("| ------: | ----------: | -----: | -----------: | -----: | -----------: | -------: | ----------: |")
    for size in arguments.sizes:
        result = apart(size)
        runs = int(result["runs"])
        plan, skip = (f"{result[name]:6.1f} | {1000 * result[f'{name} CPU'] / runs:12.2f}" for name in ("plan", "skip"))
        memory = f"{result['MiB']:8.1f} | {result['MiB'] * 2**20 / runs:11.0f}"
        print(f"| {runs:7,} | {result['enumerate']:11.2f} | {plan} | {skip} | {memory} |", flush=True)
    hydra = apart(SIZES[0], "--hydra")
    compose, kept = hydra["compose s"], hydra["bytes"]
    print(
        f"\nHydra composes a job in {1000 * compose:.0f} ms of CPU, once to check it and once to launch it, and its "
        f"launcher keeps\n{kept / 2**10:.0f} KiB of it to the end of the sweep: for 100,000 jobs "
        f"{2e5 * compose / 3600:.1f} hours and {1e5 * kept / 2**30:.0f} GiB."
    )


if __name__ == "__main__":
    main()
