"""What a sweep takes beyond the training and evaluation of its runs.

    python -m benchmarks.sweep_overhead [--runs N] [--rows N] [--steps N] [--json FILE]

One multirun of short runs (lora and head × seeds, the packaged film reviews, MiniLM) in a fresh process with an
empty study. `inside` is the sum of what its records say of training and evaluating. `wall` is the whole command;
`start` is its part up to the first run's first second of training: Python, imports, reading the task, loading the
model. `gap` is what passes from one record to the next besides training and evaluating: planning, copying the
model, attaching, writing.
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
    """One sweep of `runs` runs with `steps` steps each: seconds, and wall over inside."""
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
        ended = sorted(
            (os.stat(os.path.join(folder, record.FILENAME)).st_mtime, folder) for folder in record.find(place)
        )
        inside = []
        for _, folder in ended:
            row = record.read(Path(folder))
            assert row is not None and row.time.train is not None and row.time.eval is not None
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=24, metavar="N", help="an even number")
    parser.add_argument("--rows", type=int, default=1000, metavar="N", help="of training and of evaluation")
    parser.add_argument("--steps", type=int, default=60, metavar="N", help="of each run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes all numbers there")
    arguments = parser.parse_args()
    found = measure(arguments.runs, arguments.rows, arguments.steps)
    print("| runs | wall s | inside s | wall / inside | start s | gap s, median | largest |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    print(f"| {found['runs']} | {found['wall']:.1f} | {found['inside']:.1f} | {found['ratio']:.3f} ", end="")
    print(f"| {found['start']:.1f} | {found['gap']:.2f} | {found['largest_gap']:.2f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
