"""Cost of a training step of a language model: ours beside PEFT's, and the memory that the loss takes.

    python -m benchmarks.step_cost --model smollm2 [--json FILE] [--write]

A step learns all tokens of one batch of random ones. Ours and PEFT's have the trainer's loss, which forms no logits of
a whole batch (`trainer.objectives.likelihood`); memory is counted with transformers' own loss, too. The floor is
forward and backward through the frozen model, which has no head to train.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from benchmarks.stepper import Stepper, in_turn, peak_bytes
from trainer import config as run_config
from trainer.data.sources import fetch_model
from trainer.loop.network import Network
from trainer.model import backbone as models
from trainer.model.architecture import Architecture
from trainer.objectives import language_models, likelihood
from trainer.objectives.causal_lm import CausalLM
from trainer.sweeps.plan import model_sources
from variants.core.step import Loss
from variants.core.variant import Variant
from variants.head import Head

NAMES = ("floor", "lora", "peft lora", "adalora", "peft adalora", "dora", "peft dora")
SIZES = ((4, 64), (8, 64), (4, 128), (8, 128))  # rows, tokens: a step of the largest takes 4 s on two cores
ROUNDS = 6
OWN_LOSS = ("lora", "peft lora")  # measured with transformers' loss, too
CONF = Path(__file__).parents[1] / "conf"


class LanguageModel:
    """A language model of conf/model, without a run's changes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.architecture = folder, Architecture(CausalLM.auto_class, None)
        self.backbone = models.load_backbone(folder, self.architecture, CausalLM.head)


def load(name: str) -> LanguageModel:
    """Loads conf/model/<name>.yaml. Raises `ConfigError` for one that is no language model."""
    run_config.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"model={name}"])
    return LanguageModel(fetch_model(model_sources(config), config.model.files))


class Frozen(Head):
    """The frozen model alone, which a run would refuse."""

    def check(self, model: torch.nn.Module, head: Sequence[str] = ()) -> None:
        pass


class LanguageStepper(Stepper):
    """own_loss: transformers' loss, which forms the logits of all tokens in float32, in place of the trainer's."""

    def __init__(
        self,
        source: LanguageModel,
        variant: Variant,
        batch: int,
        length: int,
        device: torch.device,
        *,
        own_loss: bool = False,
    ) -> None:
        self._source, self._own_loss = source, own_loss
        super().__init__(source.backbone, variant, batch, length, device)

    def _labels(self) -> torch.Tensor:
        return self.inputs["input_ids"].clone()

    def _loss(self, batch: None) -> Loss:
        counted = self._rows(None)
        if self._own_loss:
            return Loss(self.model(**self.inputs, labels=self.labels, use_cache=False).loss * counted, counted)
        network = Network(self.model, self._source.folder, self.device, autocast=False)
        targets = language_models.targets(self.labels)
        losses = likelihood.of_tokens(
            network, self._source.architecture, targets, lambda: network(**self.inputs), int(counted)
        )
        return Loss(losses.sum(), counted)

    def _rows(self, batch: None) -> float:
        return self.labels.numel() - len(self.labels)  # the first token of a row is predicted from nothing

    def _saved(self) -> torch.Tensor:
        return self._loss(None).mean

    def peak_bytes(self) -> int:
        """Bytes of one step at its peak, beyond what was allocated before it."""
        return peak_bytes(self.step, self.device)


def measure(
    source: LanguageModel,
    methods: Mapping[str, Any],
    batch: int,
    length: int,
    device: torch.device,
) -> dict[str, dict[str, float]]:
    """For every method: its times, and saved and peak MiB with the trainer's loss and with transformers' own."""
    torch.manual_seed(0)
    methods = {**methods, "floor": Frozen}
    steppers = {name: LanguageStepper(source, methods[name](), batch, length, device) for name in NAMES}
    times = in_turn(steppers, ROUNDS)
    rows: dict[str, dict[str, float]] = {}
    for name, taken in times.items():
        stepper = steppers[name]
        rows[name] = {
            **vars(taken),
            "overhead": taken.over_floor / times["floor"].ms,
            "least_over_floor": taken.ms_least - times["floor"].ms_least,
            "activations_mib": stepper.saved_bytes() / 2**20,
            "peak_mib": stepper.peak_bytes() / 2**20,
        }
    for name in OWN_LOSS:
        steppers[name]._own_loss = True
        rows[name]["own_activations_mib"] = steppers[name].saved_bytes() / 2**20
        rows[name]["own_peak_mib"] = steppers[name].peak_bytes() / 2**20
    return rows


def table(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[str]:
    """Yields one line a method and setting. Times: median with quartiles, and the least; MiB: saved, peak."""
    yield (
        "| batch × length | method | ms a step (quartiles) | least | over the floor | to PEFT's | of the least "
        "| saved MiB | peak MiB | transformers' loss: saved | peak |"
    )
    yield "|---" * 11 + "|"
    for setting, rows in results.items():
        for name, row in rows.items():
            spread = f"{row['ms']:.0f} ({row['ms_low']:.0f} … {row['ms_high']:.0f})"
            over = "" if name == "floor" else f"{row['overhead']:+.0%}"
            ratios = [ratio(rows, name, key) for key in ("over_floor", "least_over_floor")]
            cells = ["" if found is None else f"{found:.2f}" for found in ratios]
            memory = [f"{row[key]:.0f}" if key in row else "" for key in MEMORY]
            yield " | ".join([f"| {setting}", name, spread, f"{row['ms_least']:.0f}", over, *cells, *memory]) + " |"


MEMORY = ("activations_mib", "peak_mib", "own_activations_mib", "own_peak_mib")


def ratio(rows: Mapping[str, Mapping[str, float]], name: str, key: str) -> float | None:
    """Ours to PEFT's; None for what one alone has."""
    theirs = rows.get(f"peft {name}", {}).get(key)
    return None if theirs is None else rows[name][key] / theirs


def summary(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Ratios, ours to PEFT's, of every method that both have: medians over the settings, and the worst."""
    names = [name for name in NAMES if f"peft {name}" in NAMES]
    found: dict[str, dict[str, float]] = {}
    for title, key, of in (
        ("overhead: median over the settings", "over_floor", statistics.median),
        ("the same: the worst setting", "over_floor", max),
        ("overhead of the least times: median", "least_over_floor", statistics.median),
        ("the same: the worst setting of the least", "least_over_floor", max),
        ("saved activations: the worst setting", "activations_mib", max),
        ("peak of a step: the worst setting", "peak_mib", max),
    ):
        values = {name: [rows[name][key] / rows[f"peft {name}"][key] for rows in results.values()] for name in names}
        found[title] = {name: of(every) for name, every in values.items()}
    return found


def closing(totals: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Yields the lines of ratios over the settings."""
    names: Sequence[str] = list(next(iter(totals.values())))
    yield "| ours to PEFT's | " + " | ".join(names) + " |"
    yield "|---" * (1 + len(names)) + "|"
    for line, found in totals.items():
        yield f"| {line} | " + " | ".join(f"{found[name]:.2f}" for name in names) + " |"
