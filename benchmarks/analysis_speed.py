"""Time and memory of the commands that make tables, as multiples of reading the same files with the standard library.

    python -m benchmarks.analysis_speed [--runs 1000 3000 10000] [--seeds N] [--rounds N] [--json FILE]

N records of a study (tasks of GLUE × settings of every variant × five seeds, 1 % of them failed) are
written into a temporary folder. The floor knows all paths, opens each `record.json` and calls
`json.load`. The commands find the records, check them and write their output.

Floor and commands take turns, each in its own process. A process first handles ten records (`start`,
mostly imports) and then all. A ratio is the median over the rounds of a command's CPU seconds over the
floor's in the same round; on an otherwise idle machine these equal wall seconds. The peak is the
kernel's value for the whole process.

Memory is measured in two kinds of studies: more settings with five seeds each, and more seeds of the settings of the
smallest study. Records stay in memory, and parts that many share are stored once.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.identity import Identity, identify, run_id

ROOT = Path(__file__).parents[1]
VERBS: dict[str, tuple[str, ...]] = {
    "table md": ("table", "RUNS", "--output", "{out}/table.md"),
    "table csv": ("table", "RUNS", "--output", "{out}/table.csv"),
    "table latex": ("table", "RUNS", "--output", "{out}/table.tex"),
    "table html": ("table", "RUNS", "--output", "{out}/table.html"),
    "collect csv": ("collect", "RUNS", "--output", "{out}/runs.csv"),
    "collect parquet": ("collect", "RUNS", "--output", "{out}/runs.parquet"),
}
SEEDS = 5
MIB = 2**20

# Code of a child process. The last line that it prints: seconds on few records, seconds and CPU seconds on all records,
# peak in KiB.
_CHILD = """
import sys, time
{body}
few, all = sys.argv[1:3]
start = time.perf_counter()
prepare(few)()
first = time.perf_counter() - start
work = prepare(all)
start, busy = time.perf_counter(), time.process_time()
work()
busy = time.process_time() - busy
seconds = time.perf_counter() - start
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(first, seconds, busy, peak)
"""
_FLOOR = """
def prepare(runs):
    import json, os
    paths = [os.path.join(folder, "record.json") for folder, _, files in os.walk(runs) if "record.json" in files]
    def work():
        for path in paths:
            with open(path, encoding="utf-8") as file:
                json.load(file)
    return work
"""
_VERB = """
def prepare(runs):
    def work():
        from analysis.commands.cli import main
        assert main([part.replace("RUNS", runs) for part in sys.argv[3:]]) == 0
    return work
"""


TASKS = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")


@functools.cache
def identity(task: str, variant: str) -> Identity:
    """Of a variant on a task, as records have it."""
    from trainer import config as run_config

    part = {**_deciding(f"variant={variant}", "task=cola"), "task": _deciding(f"task={task}")["task"]}
    return identify(part, {}, run_config.defaults())


@functools.cache
def _deciding(*overrides: str) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir

    from trainer import config as run_config

    run_config.register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return run_config.deciding(compose("config", [*overrides]))


def rows(count: int, seeds: int = SEEDS) -> Iterator[dict[str, Any]]:
    """`count` flat records of one study with this many seeds per setting; deterministic."""
    from trainer import record

    draw = random.Random(0)
    variants = sorted(path.stem for path in (ROOT / "conf/variant").glob("[!_]*.yaml"))
    for number in range(count):
        setting, seed = divmod(number, seeds)
        setting, place = divmod(setting, len(TASKS))
        setting, variant = divmod(setting, len(variants))
        own, varied = identity(TASKS[place], variants[variant]), {"seed": seed, "optim.lr": (setting + 1) * 1e-4}
        row = _row(draw, own.settings | varied, own.leaves | varied, seed, failed=draw.random() < 0.01)
        yield row | {record.CHECKSUM: record.checksum(row)}


def _row(
    draw: random.Random, config: dict[str, Any], leaves: dict[str, Any], seed: int, failed: bool
) -> dict[str, Any]:
    variant, task, metrics = config["variant.name"], config["task.name"], config["task.metrics"]
    row = {
        "version": 2,
        "run_id": run_id(leaves),
        "study": "speed",
        "variant": variant,
        "task": task,
        "model": config["model.name"],
        "seed": seed,
        "status": "failed" if failed else "done",
        "started": f"2026-01-{1 + seed % 28:02}T03:04:05+00:00",
        "finished": f"2026-01-{1 + seed % 28:02}T03:05:{draw.randrange(10, 60)}+00:00",
        "overrides": [f"variant={variant}", f"task={task}", f"seed={seed}", f"optim.lr={config['optim.lr']}"],
        "git.commit": "c293269ad6d1c2a4b1d3b4fe2f4c0a9b7e5d1f02",
        "git.dirty": False,
        "hardware.cpu": "AMD EPYC 7B13",
        "hardware.cores": 2,
        "hardware.threads": 2,
        "hardware.memory": 8_323_072_000,
        **{f"config.{name}": value for name, value in config.items()},
        **{f"identity.{name}": value for name, value in leaves.items()},
    }
    packages = ("accelerate", "datasets", "hydra-core", "loratory", "numpy", "peft", "python", "tokenizers", "torch")
    row |= {f"versions.{name}": f"1.{place}.0" for place, name in enumerate(packages)}
    if failed:
        return row | {"error": "RuntimeError: loss is not finite"}
    value = {name: 0.8 + draw.gauss(0, 0.02) for name in metrics}
    split = "validation_matched" if task == "mnli" else "validation"
    row |= {f"metrics.{name}": number for name, number in value.items()}
    if task == "mnli":
        row |= {f"metrics.validation_mismatched.{name}": 0.8 + draw.gauss(0, 0.02) for name in metrics}
    steps, adapter = 100 * len(task), 1000 * len(variant) ** 3
    return row | {
        "metric.name": metrics[0],
        "metric.value": value[metrics[0]],
        "metric.higher_is_better": True,
        "metric.split": split,
        "metric.checkpoint": "best",
        "metric.step": steps - 100,
        "data.protocol": "dev",
        "data.train": 3668,
        "data.select": 408,
        "data.report": 408,
        "data.labels": 2,
        "data.truncated": draw.randrange(9),
        "steps.total": steps,
        "steps.done": steps,
        "steps.epochs": 3.0,
        "steps.skipped": 0,
        "params.total": 22_713_216 + adapter,
        "params.head": 148_610,
        "params.adapter_start": adapter,
        "params.adapter_end": adapter,
        "params.effective": adapter,
        "params.closed_form": adapter,
        "rank.layers": 36,
        "rank.start": 288,
        "rank.end": 288,
        "memory.weights": 92 * MIB,
        "memory.gradients": 4 * adapter,
        "memory.optimizer": 8 * adapter,
        "memory.activations": draw.randrange(400 * MIB, 500 * MIB),
        "memory.adapter_file": 4 * adapter + 600_000,
        "memory.peak_rss": draw.randrange(1600 * MIB, 1900 * MIB),
        "time.train": draw.uniform(50, 70),
        "time.eval": draw.uniform(3, 5),
        "time.tokens_per_second": draw.uniform(900, 1100),
        "time.steps_per_second": draw.uniform(1, 2),
    }


def write(count: int, folder: Path, seeds: int = SEEDS) -> None:
    """Writes `count` run folders below `folder`, with the records of `rows`."""
    from trainer.record import FILENAME, Record

    for row in rows(count, seeds):
        Record.from_row(row)  # raises for an invalid record
        home = folder / row["run_id"]
        home.mkdir(parents=True)
        text = json.dumps(row, indent=1, sort_keys=True, ensure_ascii=False)
        (home / FILENAME).write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Measured:
    """Measurements of one process."""

    start: float  # seconds on ten records, imports included
    seconds: float
    busy: float  # CPU seconds
    peak: float  # MiB


def child(body: str, *arguments: str) -> Measured:
    """Runs `body` in a new interpreter."""
    command = [sys.executable, "-c", _CHILD.format(body=body), *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    start, seconds, busy, peak = done.stdout.splitlines()[-1].split()
    return Measured(float(start), float(seconds), float(busy), int(peak) / 1024)


def measure(
    count: int, rounds: int, verbs: dict[str, tuple[str, ...]], seeds: int = SEEDS
) -> dict[str, dict[str, float]]:
    """For the floor and each command: median seconds, ratio to the floor, and peak MiB."""
    with tempfile.TemporaryDirectory() as place:
        few, runs, out = (Path(place) / name for name in ("few", "runs", "out"))
        out.mkdir()
        write(10, few)
        write(count, runs, seeds)
        taken: dict[str, list[Measured]] = {"floor": [], **{name: [] for name in verbs}}
        for turn in range(rounds + 1):
            for name, measured in taken.items():
                arguments = [part.format(out=out) for part in verbs.get(name, ())]
                one = child(_VERB if name in verbs else _FLOOR, str(few), str(runs), *arguments)
                if turn:  # the first round warms the file cache
                    measured.append(one)
    return {
        name: {
            "start_seconds": statistics.median(one.start for one in measured),
            "seconds": statistics.median(one.seconds for one in measured),
            "busy_seconds": statistics.median(one.busy for one in measured),
            "ratio": statistics.median(one.busy / low.busy for one, low in zip(measured, taken["floor"], strict=True)),
            "peak_mib": max(one.peak for one in measured),
        }
        for name, measured in taken.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--runs", type=int, nargs="+", default=[1000, 3000, 10_000], metavar="N", help="numbers of records"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="N", help="seeds per setting; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="number of measurements after a warm-up")
    parser.add_argument("--verbs", nargs="+", choices=VERBS, default=list(VERBS), metavar="VERB", help="; ".join(VERBS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for all numbers")
    arguments = parser.parse_args()
    counts = sorted(set(arguments.runs))
    verbs: dict[str, tuple[str, ...]] = {name: VERBS[name] for name in arguments.verbs}
    results = {}
    for count in counts:
        by_command = results[count] = measure(count, arguments.rounds, verbs, arguments.seeds)
        seeds = f"seeds of a setting: {arguments.seeds}"
        print(f"{count:,} records, {seeds}, {arguments.rounds} rounds, Python {sys.version.split()[0]}\n")
        print("| | start s | s | processor s | × floor | peak MiB |\n|---|---:|---:|---:|---:|---:|")
        for name, row in by_command.items():
            print(f"| {name} | {row['start_seconds']:.2f} | {row['seconds']:.2f} ", end="")
            print(f"| {row['busy_seconds']:.2f} | {row['ratio']:.2f} | {row['peak_mib']:.0f} |")
        print(flush=True)
    # Memory does not vary, so that one measurement is enough.
    more_seeds = {count: measure(count, 1, verbs, arguments.seeds * count // counts[0]) for count in counts[1:]}
    more_seeds = {counts[0]: results[counts[0]], **more_seeds}
    for what, measured in (("more settings", results), ("more seeds", more_seeds)):
        print("\n".join(memory(what, measured)), end="\n\n")
    if arguments.json:
        arguments.json.write_text(json.dumps({"more settings": results, "more seeds": more_seeds}, indent=1))


def memory(what: str, measured: dict[int, dict[str, dict[str, float]]]) -> Iterator[str]:
    """A table of peaks by number of records, with the growth in bytes per run from the first to the last."""
    counts = list(measured)
    first, last = counts[0], counts[-1]
    yield f"| {what}, peak MiB | {' | '.join(f'{count:,}' for count in counts)} | bytes a run |"
    yield f"|---|{'---:|' * (len(counts) + 1)}"
    for name in measured[first]:
        peaks = [measured[count][name]["peak_mib"] for count in counts]
        growth = f"{(peaks[-1] - peaks[0]) * MIB / (last - first):.0f}" if last > first else ""
        yield f"| {name} | {' | '.join(f'{peak:.1f}' for peak in peaks)} | {growth} |"


if __name__ == "__main__":
    main()
