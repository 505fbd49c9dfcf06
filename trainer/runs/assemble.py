"""The parts of a run, put together from its config: the same for one that starts and one that is opened again.

with apart(config):
    parts = check(config)        # all that can be wrong is found before a weight is loaded
    model = load(parts)          # backbone, fresh head, and the variant attached
    loop(parts, model, folder, device)
"""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from trainer.data import rows as data
from trainer.data.sources import fetch_model, hub
from trainer.errors import ConfigError
from trainer.instantiate import make, named
from trainer.loop import optim
from trainer.loop.batches import total_steps
from trainer.loop.loop import Loop
from trainer.machine import malloc, processes
from trainer.model import agreement, padding
from trainer.model import backbone as models
from trainer.objectives import kinds
from trainer.objectives.objective import Objective
from trainer.runs import start
from trainer.sweeps.plan import model_sources
from variants.core.adapters.adapter import use_kernel
from variants.core.kernels.low_rank import Kernel
from variants.core.target_modules import by_block
from variants.core.variant import Variant

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """A run before any weight is loaded.

    objective: what the run's task is. source: the folder of model and tokenizer. max_length: tokens of the longest
    text. head: names of the modules that belong to the task. left_out: numbers in parameters that the variant's word
    for what it trains ("all-linear") promises and doesn't reach, by name.
    """

    config: DictConfig
    variant: Variant
    objective: Objective
    source: Path
    max_length: int
    rows: data.Prepared
    head: Sequence[str]
    left_out: Mapping[str, int]

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, or of what is no text the processor that makes its inputs."""
        return self.objective.processor(self.source)

    def pristine(self) -> models.Pristine:
        """The model as its checkpoint has it, loaded once for all runs."""
        model = self.config.model
        objective = self.objective
        return models.pristine(
            self.source, objective.architecture, objective.head, model.get("dropout"), model.get("keep_head")
        )

    def base(self) -> nn.Module:
        """A copy of the model without the variant: backbone in the run's dtype, head drawn with its seed."""
        return models.fresh(self.pristine(), self.config.seed, self.config.model.dtype)

    def reference(self) -> tuple[str, str | None]:
        """Where others find the model: its id and revision on the Hub, or the folder where it isn't there."""
        return hub.reference(model_sources(self.config)) or (str(self.source), None)


@contextlib.contextmanager
def apart(config: DictConfig) -> Iterator[None]:
    """Within it a run has the process for itself: torch's threads and its draws."""
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[]):
            if config.machine.threads is not None:
                torch.set_num_threads(config.machine.threads)
            malloc.keep()
            yield
    finally:
        torch.set_num_threads(threads)
        gc.collect()
        malloc.give_back()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Inputs:
    """What a run reads before any weight is loaded, and the model's modules without weights (`bare`)."""

    objective: Objective
    source: Path
    bare: nn.Module
    max_length: int
    rows: data.Prepared


def check(config: DictConfig) -> Parts:
    """Everything that a run needs but weights. Raises `ConfigError`."""
    variant = settings(config)
    return fit(config, variant, read(config, variant.virtual_tokens()))


def settings(config: DictConfig) -> Variant:
    """The variant of a run, whose settings and those of its optimizer need neither model nor rows to be wrong.

    Raises `ConfigError`.
    """
    variant: Variant = make("variant", config.variant)
    optim.check(config.optim)
    if config.train.gradient_checkpointing and (field := variant.needs_cache()) is not None:
        raise ConfigError(
            f"train.gradient_checkpointing: true with variant.{field}, allowed: false; the model would drop its keys"
        )
    if config.machine.fsdp:
        from trainer.machine import sharding  # here, because torch's part of it takes a second to import

        sharding.refuse_readers(variant)
    return variant


def read(config: DictConfig, virtual_tokens: int) -> Inputs:
    """The model's modules and the rows as its tokens. Raises `ConfigError` where they don't fit together.

    virtual_tokens: places of the model that the variant takes from each text.
    """
    source = fetch_model(model_sources(config), config.model.files)
    objective = kinds.of(config.task)
    bare = models.skeleton(source, objective.architecture)
    processor = objective.processor(source)
    objective.check_model(bare, processor)
    max_length = _longest(config, objective, bare, processor, virtual_tokens)
    rows = data.prepare(objective, config.data, config.seed, source, max_length)
    if objective.tokens:
        agreement.check(bare, processor, rows, objective.content)
    return Inputs(objective, source, bare, max_length, rows)


def _longest(config: DictConfig, objective: Objective, bare: nn.Module, processor: Any, virtual_tokens: int) -> int:
    """Tokens of the longest text that the model takes in the run. Raises `ConfigError` where there is no room."""
    if not objective.tokens:
        if virtual_tokens:
            raise ConfigError(
                f"variant.options.num_virtual_tokens: {virtual_tokens} in a {objective.title}, which has no tokens; "
                "allowed: a method without"
            )
        return int(config.data.max_length)
    positions = agreement.longest_text(bare)
    if positions is not None:
        positions -= virtual_tokens
        if positions < 1:
            allowed = positions + virtual_tokens
            raise ConfigError(f"variant.options.num_virtual_tokens: {virtual_tokens}, allowed: below {allowed}")
    max_length: int = min(config.data.max_length, positions or config.data.max_length)
    agreement.refuse_no_room(processor, max_length, objective.pairs)
    return max_length


def fit(config: DictConfig, variant: Variant, inputs: Inputs) -> Parts:
    """The run's parts, where the variant fits its steps and its model. Raises `ConfigError`."""
    bare, rows = inputs.bare, inputs.rows
    named("variant", variant.plan, total_steps(len(rows.train), config.train))
    head = inputs.objective.head(bare)
    if config.model.get("keep_head"):
        models.check_kept_head(inputs.source, rows.labels)
    if (dropout := config.model.get("dropout")) is not None:
        models.set_dropout(copy.deepcopy(bare.config), dropout)
    named("variant", variant.check, bare, head)
    left_out = variant.leaves_out(bare, head)
    return Parts(config, variant, inputs.objective, inputs.source, inputs.max_length, rows, head, left_out)


def load(parts: Parts) -> nn.Module:
    """The model with the variant attached. Raises `ConfigError`."""
    if notice := parts.pristine().notice:
        log.warning(notice)
    if left := parts.left_out:
        log.warning(
            "variant: %s doesn't reach everything: %s numbers are left out, in no linear layer or by another name: %s",
            *(parts.variant.name, f"{sum(left.values()):,}", by_block(left)),
        )
    base, outputs = parts.base(), parts.objective.outputs_of
    padded = parts.objective.tokens
    rounding = padding.settle(base, parts.tokenizer, parts.rows, outputs, "model") if padded else 0.0
    parts.objective.check_loaded(
        parts.pristine().model, parts.tokenizer, parts.rows.report[next(iter(parts.rows.report))]
    )
    backbone = list(base.parameters())
    model = named("variant", parts.variant.attach, base, parts.head)
    use_kernel(model, Kernel(parts.config.machine.kernel, parts.config.train.recompute))
    models.refuse_half_precision(model, parts.variant.name)
    if padded and model is not base:  # what wraps the whole model may put words of its own in front
        padding.settle_wrapped(model, parts.tokenizer, parts.rows, outputs, rounding)
    if parts.config.train.recompute and not any(adapter.recomputes for adapter in parts.variant.adapters.values()):
        name = parts.variant.name
        raise ConfigError(
            f"train.recompute: true with variant {name}, allowed: false; it keeps nothing to compute again"
        )
    if parts.config.init_from is not None:
        start.take_up(parts, model)
    if parts.config.machine.fsdp and processes.count() > 1:
        from trainer.machine import sharding

        sharding.shard(model, backbone, parts.variant, device(parts.config.machine.device))
    return model


def loop(parts: Parts, model: nn.Module, folder: Path, device: torch.device) -> Loop:
    """What trains and evaluates `model`; its files are in `folder`."""
    return Loop(
        model=model,
        variant=parts.variant,
        head=parts.head,
        rows=parts.rows,
        objective=parts.objective,
        config=parts.config,
        folder=folder,
        source=parts.source,
        device=device,
    )


def device(name: str) -> torch.device:
    """The device that `machine.device` means. Raises `ConfigError` where it isn't there."""
    there = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if there else "cpu")
    if name != "cpu" and not there:
        raise ConfigError(f"machine.device: {name!r}, allowed here, without a CUDA device: auto, cpu")
    found = torch.device(name)
    if found.index is not None and found.index >= there:
        raise ConfigError(f"machine.device: {name!r}, allowed here: auto, cpu, cuda:0 … cuda:{there - 1}")
    return found
