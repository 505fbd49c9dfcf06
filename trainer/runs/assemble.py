"""Assembles a run from its config, in the same way for a new run and for a finished run that is opened again.

with apart(config):
    context = check(config)      # finds faults before any weight is loaded
    model = load(context)        # loads the backbone, adds a fresh head, and attaches the variant
    loop(context, model, folder, device)
"""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from trainer.loop.batches import Batch, total_steps
from trainer.loop.counters import Counters
from trainer.loop.loop import Loop
from trainer.loop.network import Network
from trainer.machine import malloc, processes
from trainer.model import agreement, padding
from trainer.model import backbone as models
from trainer.objectives import kinds
from trainer.objectives.objective import Objective
from trainer.runs import start
from trainer.sweeps import found_ranks
from trainer.sweeps.plan import model_sources, plan
from variants.core import quantization
from variants.core.adapters.adapter import use_kernel
from variants.core.kernels.low_rank import Kernel
from variants.core.step import Loss
from variants.core.target_modules import by_block
from variants.core.variant import Variant

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunContext:
    """A checked run before any weight is loaded.

    source: the folder of model and tokenizer. max_length: of a row, in the kind's units. head: the task's modules.
    left_out: sizes by name of the parameters that the variant's targets ("all-linear") include by their meaning but
    that the method can't adapt.
    """

    config: DictConfig
    variant: Variant
    objective: Objective
    source: Path
    max_length: int
    rows: data.TaskSplits
    head: Sequence[str]
    left_out: Mapping[str, int]

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, or of what is no text the processor that makes its inputs."""
        return self.objective.processor(self.source)

    def loaded_backbone(self) -> models.LoadedBackbone:
        """Returns the checkpoint's model, which all runs share."""
        model = self.config.model
        objective = self.objective
        return models.load_backbone(
            self.source, objective.architecture, objective.head, model.get("dropout"), model.get("keep_head")
        )

    def base(self) -> nn.Module:
        """Copies the model without the variant: the backbone in the run's dtype, the head drawn with the run's seed."""
        model = self.config.model
        return models.fresh(self.loaded_backbone(), self.config.seed, model.dtype, model.get("quantize"))

    def reference(self) -> tuple[str, str | None]:
        """Returns the model's public location: id and revision on the Hub, or else the folder and None."""
        return hub.reference(model_sources(self.config)) or (str(self.source), None)


@contextlib.contextmanager
def apart(config: DictConfig) -> Iterator[None]:
    """Isolates a run in the process: torch's threads and random state are restored afterwards."""
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
    """The objective and rows of a run, and the model's modules without weights (`bare`)."""

    objective: Objective
    source: Path
    bare: nn.Module
    max_length: int
    rows: data.TaskSplits


def check(config: DictConfig) -> RunContext:
    """Makes everything that a run needs except weights. Raises `ConfigError`."""
    variant = settings(config)
    return fit(config, variant, read(config, variant.virtual_tokens()))


def settings(config: DictConfig) -> Variant:
    """Makes the variant and checks the settings that need neither model nor rows. Raises `ConfigError`."""
    variant: Variant = make("variant", found_ranks.filled(config, found_ranks.find(config, plan)))
    optim.check(config.optim)
    if config.train.gradient_checkpointing and (field := variant.needs_cache()) is not None:
        raise ConfigError(
            f"train.gradient_checkpointing: true with variant.{field}, allowed: false; the model would drop its keys"
        )
    if config.machine.fsdp:
        if (how := config.model.get("quantize")) is not None:
            raise ConfigError(f"machine.fsdp: true with model.quantize: {how}, allowed: false; it would shard none")
        from trainer.machine import sharding  # not at the top, because it takes a second

        sharding.refuse_readers(variant)
    return variant


def read(config: DictConfig, virtual_tokens: int) -> Inputs:
    """Makes the model's modules and tokenizes the rows. Raises `ConfigError` if they don't fit together.

    virtual_tokens: the number of positions that the variant takes from each text.
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
    if (general := objective.general) is not None:
        (split,) = general.content.splits
        texts = data.general(general, config.data.eval_limit, source, max_length)
        agreement.check_rows(bare, texts, split, general.content)
    if (how := config.model.get("quantize")) is not None:
        dtype = getattr(torch, config.model.dtype)
        named("model", quantization.quantize, bare, how, objective.head(bare), dtype)
    return Inputs(objective, source, bare, max_length, rows)


def _longest(config: DictConfig, objective: Objective, bare: nn.Module, processor: Any, virtual_tokens: int) -> int:
    """Tokens of the longest text that the model takes in the run. Raises `ConfigError` where there is no room."""
    if not objective.tokens:
        if virtual_tokens:
            raise ConfigError(
                f"variant.options.num_virtual_tokens: {virtual_tokens} in a {objective.title}, which has no tokens; "
                "allowed: a method without"
            )
        return objective.longest(processor, int(config.data.max_length))
    positions = agreement.longest_text(bare)
    if positions is not None:
        positions -= virtual_tokens
        if positions < 1:
            allowed = positions + virtual_tokens
            raise ConfigError(f"variant.options.num_virtual_tokens: {virtual_tokens}, allowed: below {allowed}")
    max_length: int = min(config.data.max_length, positions or config.data.max_length)
    agreement.refuse_no_room(processor, max_length, objective.pairs)
    return max_length


def fit(config: DictConfig, variant: Variant, inputs: Inputs) -> RunContext:
    """Makes the run's context. Raises `ConfigError` if the variant doesn't fit the number of steps or the model."""
    bare, rows = inputs.bare, inputs.rows
    named("variant", variant.plan, total_steps(len(rows.train), config.train, variant.trains))
    head = inputs.objective.head(bare)
    if config.model.get("keep_head"):
        models.check_kept_head(inputs.source, rows.labels)
    if (dropout := config.model.get("dropout")) is not None:
        models.set_dropout(copy.deepcopy(bare.config), dropout)
    if config.train.gradient_checkpointing and not getattr(bare, "supports_gradient_checkpointing", False):
        raise ConfigError(
            f"train.gradient_checkpointing: true with {type(bare).__name__}, allowed: false; "
            "transformers has none for it"
        )
    objective = inputs.objective
    names = objective.processor(inputs.source).model_input_names if objective.tokens else ()
    named("variant", variant.for_task, objective.peft_task_of(names))
    named("variant", variant.check, bare, head)
    left_out = variant.leaves_out(bare, head)
    return RunContext(config, variant, inputs.objective, inputs.source, inputs.max_length, rows, head, left_out)


def load(context: RunContext) -> nn.Module:
    """Loads the model and attaches the variant. Raises `ConfigError`."""
    if notice := context.loaded_backbone().notice:
        log.warning(notice)
    if left := context.left_out:
        log.warning(
            "variant: %s doesn't adapt everything: %s parameters are left out (not linear, or under another name): %s",
            *(context.variant.name, f"{sum(left.values()):,}", by_block(left)),
        )
    base, outputs = context.base(), context.objective.outputs_of
    padded = context.objective.tokens
    rounding = padding.settle(base, context.tokenizer, context.rows, outputs, "model") if padded else 0.0
    context.objective.check_loaded(
        context.loaded_backbone().model, context.tokenizer, context.rows.report[next(iter(context.rows.report))]
    )
    if context.config.machine.fsdp:
        context.objective.refuse_sharding(base, context.tokenizer)
    backbone = list(base.parameters())
    model = named("variant", context.variant.attach, base, context.head)
    use_kernel(model, Kernel(context.config.machine.kernel, context.config.train.recompute))
    models.refuse_half_precision(model, context.variant.name)
    if padded and model is not base:  # a wrapper of the whole model may prepend tokens
        padding.settle_wrapped(model, context.tokenizer, context.rows, outputs, rounding)
    if context.config.train.recompute and not any(adapter.recomputes for adapter in context.variant.adapters.values()):
        name = context.variant.name
        raise ConfigError(
            f"train.recompute: true with variant {name}, allowed: false; it saves nothing that could be recomputed"
        )
    if context.config.init_from is not None:
        start.take_up(context, model)
    if context.config.machine.fsdp and processes.count() > 1:
        from trainer.machine import sharding

        sharding.shard(model, backbone, context.variant, device(context.config.machine.device))
    return model


def loop(
    context: RunContext,
    model: nn.Module,
    folder: Path,
    device: torch.device,
    counters: Counters | None = None,
    loss: Callable[[Network, Batch], Loss] | None = None,
) -> Loop:
    """Makes the loop that trains and evaluates `model`; its files are in `folder`. loss: in place of the task's."""
    return Loop(
        model=model,
        variant=context.variant,
        head=context.head,
        rows=context.rows,
        objective=context.objective,
        loss=loss or context.objective.loss,
        counters=counters or Counters(),
        config=context.config,
        folder=folder,
        source=context.source,
        device=device,
    )


def device(name: str) -> torch.device:
    """Returns the device of `machine.device`. Raises `ConfigError` if the machine doesn't have it."""
    count = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    if name != "cpu" and not count:
        raise ConfigError(f"machine.device: {name!r}, allowed without a CUDA device: auto, cpu")
    chosen = torch.device(name)
    if chosen.index is not None and chosen.index >= count:
        raise ConfigError(f"machine.device: {name!r}, allowed here: auto, cpu, cuda:0 … cuda:{count - 1}")
    return chosen
