"""Time of a sweep beyond the training and evaluation of its runs.

    python -m benchmarks.sweep_overhead [--runs N] [--rows N] [--steps N] [--json FILE]

One multirun of short runs (lora and head × seeds, the packaged film reviews, MiniLM) in a new process with an empty
study. `inside` is the recorded time of training and evaluation, summed over the runs. `wall` is the time of the whole
command. `start` is its part before the first training step: Python, imports, reading the task, loading the model. `gap`
is the time from one record to the next without training and evaluation: planning, copying the model, attaching,
writing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from trainer import record

ROOT = Path(__file__).parents[1]


def measure(runs: int, rows: int, steps: int) -> dict[str, float]:
    """Measures a sweep of `runs` runs with `steps` steps each; see `shares`."""
    with tempfile.TemporaryDirectory() as place:
        command = [
            *(sys.executable, "train.py", "-m", "variant=lora,head", "task=movie"),
            f"seed={','.join(map(str, range(runs // 2)))}",
            *(f"data.limit={rows}", f"data.eval_limit={rows}", f"train.max_steps={steps}", "train.batch_size=16"),
            *("machine.progress=false", f"runs_dir={place}", "study=overhead"),
        ]
        begun, start = time.time(), time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        wall = time.perf_counter() - start
        return shares(place, begun, wall)


def shares(place: str, begun: float, wall: float) -> dict[str, float]:
    """Breakdown of a sweep's time, see the module. begun: its start by `time.time`. wall: its seconds. place: folder of
    its runs. `ratio` is wall over inside. A run ends when its record is written."""
    ended = sorted((os.stat(os.path.join(folder, record.FILENAME)).st_mtime, folder) for folder in record.find(place))
    inside = []
    for _, folder in ended:
        row = record.read(Path(folder))
        if row is None or row.time.train is None or row.time.eval is None:
            raise ValueError(f"{folder}: {row and row.error}, allowed: a finished run")
        inside.append(row.time.train + row.time.eval)
    moments = [moment for moment, _ in ended]
    gaps = [after - before - own for before, after, own in zip(moments[:-1], moments[1:], inside[1:], strict=True)]
    return {
        "runs": len(ended),
        "wall": wall,
        "inside": sum(inside),
        "ratio": wall / sum(inside),
        "start": moments[0] - begun - inside[0],
        "gap": statistics.median(gaps),
        "largest_gap": max(gaps),
    }


def table(result: dict[str, float]) -> str:
    return (
        "| runs | wall s | inside s | wall / inside | start s | gap s, median | largest |\n"
        "|---:|---:|---:|---:|---:|---:|---:|\n"
        f"| {result['runs']} | {result['wall']:.1f} | {result['inside']:.1f} | {result['ratio']:.3f} "
        f"| {result['start']:.1f} | {result['gap']:.2f} | {result['largest_gap']:.2f} |"
    )


def even(text: str) -> int:
    """Type of an argument for argparse: an even number, because two methods have the same number of seeds."""
    if not text.isdecimal() or int(text) < 2 or int(text) % 2:
        raise argparse.ArgumentTypeError(f"{text}, allowed: an even number ≥ 2")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=even, default=24, metavar="N", help="an even number")
    parser.add_argument("--rows", type=int, default=1000, metavar="N", help="of training and of evaluation, each")
    parser.add_argument("--steps", type=int, default=60, metavar="N", help="steps per run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for all numbers")
    arguments = parser.parse_args()
    result = measure(arguments.runs, arguments.rows, arguments.steps)
    print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
