"""What a training step costs: the frozen model, ours, PEFT's, full fine-tuning.

    python -m benchmarks.step_cost [--quick] [--json FILE]

All methods live in one process and take their steps in turn, so that a busy machine slows them
alike. The floor is forward and backward through the frozen backbone, gradients of activations
included, with only the head trained: no method with adapters can do with less. A step includes a
method's hooks, so that its scoring and allocation are paid for. The overhead ratio is
(ours − floor) / (PEFT's − floor); below 1 ours is the cheaper one.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir

from trainer import config as run_config
from trainer import cost
from trainer import model as models
from trainer.plan import model_sources
from trainer.sources import fetch_model
from variants.adalora import AdaLoRA
from variants.core.variant import Step, Variant
from variants.dora import DoRA
from variants.full import Full
from variants.head import Head
from variants.incremental import IncreLoRA
from variants.lora import LoRA
from variants.peft import Peft
from variants.shira import SHiRA
from variants.sora import SoRA
from variants.sparse import SparseLoRA
from variants.svft import SVFT

STEPS = 1000  # that a run would take: schedules are spread over them, and no rank leaves in the few that are measured
TARGET = {"init_r": 8, "target_r": 4, "tinit": 0, "tfinal": 100, "deltaT": 1, "orth_reg_weight": 0.1}

METHODS: dict[str, Callable[[], Variant]] = {
    "floor": Head,
    "lora": lambda: LoRA(rank=8),
    "peft lora": lambda: Peft(method="lora", options={"r": 8}),
    "lora_dropout": lambda: LoRA(rank=8, dropout=0.1),
    "peft lora_dropout": lambda: Peft(method="lora", options={"r": 8, "lora_dropout": 0.1}),
    "adalora": lambda: AdaLoRA(rank=8, target_rank=4, final_steps=100),
    "peft adalora": lambda: Peft(method="adalora", options=TARGET),
    "dora": lambda: DoRA(rank=8),
    "peft dora": lambda: Peft(method="lora", options={"r": 8, "use_dora": True}),
    "shira": lambda: SHiRA(rank=8),
    "peft shira": lambda: Peft(method="shira", options={"r": 8}),
    "sora": lambda: SoRA(rank=8),
    "svft": SVFT,
    "sparse": lambda: SparseLoRA(rank=16, schedule="rigl"),
    "increlora": lambda: IncreLoRA(rank=8, target_rank=9, interval=100),
    "full": Full,
}


class Stepper:
    """One method with its own model and optimizer, ready to take steps on a batch."""

    def __init__(self, source: models.Pristine, variant: Variant, batch: int, length: int) -> None:
        model: Any = models.fresh(source, seed=0)
        variant.plan(STEPS)
        self.variant, self.model = variant, variant.attach(model, source.head).train()
        if isinstance(variant, Head):
            model.enable_input_require_grads()  # or the backward pass would end at the head
        self.activations = cost.SavedActivations(self.model)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)  # as runs have it
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)
        self.inputs = {
            "input_ids": torch.randint(1000, 20000, (batch, length)),
            "attention_mask": torch.ones(batch, length, dtype=torch.long),
        }
        self.labels = torch.randint(0, 2, (batch,))
        self.index = 0

    def step(self) -> float:
        """Seconds of one forward, backward and optimizer step, the method's hooks included."""
        self.index += 1
        step = Step(self.index, STEPS, self.optimizer, self.scheduler)
        start = time.perf_counter()
        self.variant.on_step_begin(step)
        loss = F.cross_entropy(self.model(**self.inputs).logits, self.labels)
        penalty = self.variant.penalty()
        (loss if penalty is None else loss + penalty).backward()
        self.variant.on_gradients(step)
        self.optimizer.step()
        self.variant.on_update(step)
        self.optimizer.zero_grad()
        return time.perf_counter() - start

    def count(self) -> int:
        """Bytes saved for backward in one step."""
        with self.activations.counting():
            loss = self.model(**self.inputs).logits.sum()
        loss.backward()
        self.optimizer.zero_grad()
        return self.activations.bytes


def measure(source: models.Pristine, batch: int, length: int, rounds: int) -> dict[str, dict[str, float]]:
    """For every method: median and quartiles of a step's milliseconds, overhead over the floor, activations."""
    torch.manual_seed(0)
    steppers = {name: Stepper(source, make(), batch, length) for name, make in METHODS.items()}
    for stepper in steppers.values():
        stepper.step()
        stepper.step()
    times: dict[str, list[float]] = {name: [] for name in steppers}
    for _ in range(rounds):
        for name, stepper in steppers.items():
            times[name].append(1000 * stepper.step())
    floor = statistics.median(times["floor"])
    found = {}
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        found[name] = {
            "ms": middle,
            "ms_low": low,
            "ms_high": high,
            "overhead": middle / floor - 1,
            "activations_mib": steppers[name].count() / 2**20,
        }
    return found


def ratios(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """(ours − floor) / (PEFT's − floor) for every method that both have."""
    both = [name for name in found if f"peft {name}" in found]
    return {name: found[name]["overhead"] / found[f"peft {name}"]["overhead"] for name in both}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one setting and few steps, under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes all numbers there")
    arguments = parser.parse_args()
    run_config.register()
    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        config = compose("config")
    source = models.pristine(fetch_model(model_sources(config), config.model.files), 2)
    settings = [(8, 16)] if arguments.quick else [(batch, length) for batch in (8, 32) for length in (16, 64, 128)]
    rounds = 8 if arguments.quick else 12

    print(f"{config.model.name}, rank 8 on all linear layers, torch {torch.__version__}, ", end="")
    print(f"{torch.get_num_threads()} threads, {platform.machine()}, {rounds} steps a method\n")
    print("| batch × length | method | ms a step (quartiles) | over the floor | saved activations MiB |")
    print("|---|---|---|---|---|")
    results = {}
    for batch, length in settings:
        found = results[f"{batch}x{length}"] = measure(source, batch, length, rounds)
        for name, row in found.items():
            spread = f"{row['ms']:.0f} ({row['ms_low']:.0f} … {row['ms_high']:.0f})"
            print(f"| {batch} × {length} | {name} | {spread} | {row['overhead']:+.0%} | {row['activations_mib']:.1f} |")
    by_setting = [ratios(found) for found in results.values()]
    overhead_ratio = {name: statistics.median(r[name] for r in by_setting) for name in by_setting[0]}
    print("\noverhead ratio, ours to PEFT's (median over the settings): ", end="")
    print(", ".join(f"{name} {ratio:.2f}" for name, ratio in overhead_ratio.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps({"overhead_ratio": overhead_ratio, "settings": results}, indent=1))


if __name__ == "__main__":
    main()
