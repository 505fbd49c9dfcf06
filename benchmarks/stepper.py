"""One method with its own model and optimizer, which takes training steps in turn with others in one process."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from torch.profiler import ProfilerActivity, profile

from trainer import config as run_config
from trainer.data.sources import fetch_model
from trainer.loop import cost
from trainer.model import backbone as models
from trainer.model.architecture import Architecture
from trainer.objectives.sequence_classification import SequenceClassification
from trainer.sweeps.plan import model_sources
from variants.core.passes import Passes
from variants.core.step import Loss, take
from variants.core.variant import Step, Variant
from variants.head import Head

FEWEST = 5  # rounds, even on a slow machine
STEPS = 1000  # of the simulated run, which schedules span; no rank changes in the few that are measured


def device(text: str) -> torch.device:
    """Type of an argument for argparse: a device of this machine."""
    try:
        named = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text}, allowed: cpu, cuda, cuda:1") from None
    if named.type == "cuda" and (named.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"{text}, allowed: one of torch's {torch.cuda.device_count()} CUDA devices")
    return named


def default_model() -> tuple[str, Path]:
    """(name, folder): the default model of a run."""
    run_config.register()
    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        config = compose("config")
    return config.model.name, fetch_model(model_sources(config), config.model.files)


def default_backbone() -> tuple[str, models.LoadedBackbone]:
    """(name, model): the default model of a run."""
    name, source = default_model()
    architecture = Architecture(SequenceClassification.auto_class, 2)
    return name, models.load_backbone(source, architecture, SequenceClassification.head)


class Stepper:
    """Takes steps on one random batch of `batch` texts with `length` tokens; passes before training see it, too."""

    def __init__(
        self,
        source: models.LoadedBackbone,
        variant: Variant,
        batch: int,
        length: int,
        device: torch.device,
        dtype: str = "float32",
    ) -> None:
        model: Any = models.fresh(source, 0, dtype).to(device)
        variant.plan(STEPS)
        self.variant, self.model = variant, variant.attach(model, source.head).train()
        if isinstance(variant, Head):
            model.enable_input_require_grads()  # otherwise the backward pass would end at the head
        self.device, self.activations = device, cost.SavedActivations(self.model)
        self.inputs = {
            "input_ids": torch.randint(model.config.vocab_size, (batch, length), device=device),
            "attention_mask": torch.ones(batch, length, dtype=torch.long, device=device),
        }
        self.labels = self._labels()
        whole: Passes[None] = Passes(
            self.model, lambda count: iter([[None]] * count), lambda count: iter([None] * count), self._loss, self._rows
        )
        self.variant.before_training(whole)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        trained = trained or [torch.nn.Parameter(torch.zeros(1, device=device))]  # the floor of a model without a head
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)  # as in runs, for PEFT too
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)
        self.index = 0

    def step(self) -> tuple[float, float]:
        """Milliseconds of one forward, backward and optimizer step with the method's hooks, and of the hooks alone."""
        self.index += 1
        step = Step(self.index, STEPS, self.optimizer, self.scheduler)
        times = {"start": self._now()}

        def note(event: str) -> None:
            times[event] = self._now()

        take(step, self.variant, self.model, [None], self._loss, self._rows(None), watch=note)
        hooks = (
            times["begun"] - times["start"] + times["scored"] - times["gradients"] + times["updated"] - times["moved"]
        )
        return 1000 * (self._now() - times["start"]), 1000 * hooks

    def _labels(self) -> torch.Tensor:
        return torch.randint(0, 2, (len(self.inputs["input_ids"]),), device=self.device)

    def _loss(self, batch: None) -> Loss:
        logits = self.model(**self.inputs).logits
        return Loss(F.cross_entropy(logits, self.labels, reduction="sum"), len(self.labels))

    def _rows(self, batch: None) -> float:
        return len(self.labels)

    def _saved(self) -> torch.Tensor:
        total: torch.Tensor = self.model(**self.inputs).logits.sum()
        return total

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def saved_bytes(self) -> int:
        """Bytes saved for backward by one step."""
        with self.activations.counting():
            loss = self._saved()
        loss.backward()
        self.optimizer.zero_grad()
        return self.activations.bytes


def peak_bytes(act: Callable[[], object], device: torch.device) -> int:
    """Bytes of `act` at its peak, beyond what was allocated before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        act()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        act()
    results: Any = profiled.profiler
    changes = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        now += change.nbytes()
        peak = max(peak, now)
    return peak


@dataclass(frozen=True)
class Times:
    """Milliseconds of one method's steps. ms, ms_low, ms_high, ms_least: median, quartiles and minimum of a step.

    hooks: median time of the method's hooks. over_floor: median over the rounds of the step minus the floor's step of
    the same round, because load on the machine slows down both; 0 for the floor itself. rounds: number of rounds.
    """

    ms: float
    ms_low: float
    ms_high: float
    ms_least: float
    hooks: float
    over_floor: float
    rounds: int


def in_turn(
    steppers: Mapping[str, Stepper], rounds: int, floor: str = "floor", until: float = float("inf")
) -> dict[str, Times]:
    """Times of `rounds` ≥ 2 steps of each method, in turn, after two warm-up steps.

    until: by `time.perf_counter()`; no round starts later, except for the first `FEWEST`.
    """
    for stepper in steppers.values():
        stepper.step()
        stepper.step()
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in steppers}
    for number in range(rounds):
        if number >= FEWEST and time.perf_counter() > until:
            break
        for name, stepper in steppers.items():
            measured[name].append(stepper.step())
    times = {}
    for name, values in measured.items():
        low, middle, high = statistics.quantiles([step for step, _ in values], n=4)
        least = min(step for step, _ in values)
        over = statistics.median(mine - its for (mine, _), (its, _) in zip(values, measured[floor], strict=True))
        hooks = statistics.median(hooks for _, hooks in values)
        times[name] = Times(middle, low, high, least, hooks, over, len(values))
    return times
