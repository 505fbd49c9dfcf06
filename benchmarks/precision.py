"""Speed-up of a step with the frozen backbone in bfloat16 (`model.dtype=bfloat16`).

    python -m benchmarks.precision [--rounds N] [--device cuda] [--json FILE]

The same method above a float32 and a bfloat16 backbone takes its steps in turn in one process; adapters, head and
optimizer are in float32 above both. `times` is the median over the rounds of the float32 step over the bfloat16 step
of the same round. On a CPU the gain is that of its bfloat16 instructions (AVX512-BF16, AMX): without any it is a loss.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.stepper import Stepper, default_backbone
from benchmarks.stepper import device as device_of
from trainer.machine import malloc
from variants.core.variant import Variant
from variants.head import Head
from variants.lora import LoRA

METHODS: dict[str, Callable[[], Variant]] = {
    "floor": Head,
    "lora": lambda: LoRA(rank=8),
    "lora_dropout": lambda: LoRA(rank=8, dropout=0.1),
}
SETTINGS = [(8, 16), (8, 64), (8, 128), (32, 16), (32, 64), (32, 128)]  # texts, tokens


def measure(method: str, batch: int, length: int, rounds: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds of a step in both types, and the speed-up of bfloat16 with quartiles."""
    _, source = default_backbone()
    steppers = [Stepper(source, METHODS[method](), batch, length, device, kind) for kind in ("float32", "bfloat16")]
    for stepper in steppers:
        stepper.step()
        stepper.step()
    taken = [[stepper.step()[0] for stepper in steppers] for _ in range(rounds)]
    low, middle, high = statistics.quantiles([single / half for single, half in taken], n=4)
    single, half = (statistics.median(column) for column in zip(*taken, strict=True))
    return {"float32": single, "bfloat16": half, "times": middle, "low": low, "high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="steps per type")
    parser.add_argument("--device", type=device_of, default="cpu", help="cpu, cuda, cuda:1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for all numbers")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    malloc.keep()  # as in runs
    rows = {}
    print("| method | texts × tokens | float32 ms | bfloat16 ms | times faster | quartiles |")
    print("|:--|:--|---:|---:|---:|:--|")
    for method in METHODS:
        for batch, length in SETTINGS:
            row = measure(method, batch, length, arguments.rounds, arguments.device)
            rows[f"{method} {batch}x{length}"] = row
            print(f"| {method} | {batch} × {length} | {row['float32']:.1f} | {row['bfloat16']:.1f} ", end="")
            print(f"| {row['times']:.2f} | {row['low']:.2f} to {row['high']:.2f} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
