"""The parts of a run, put together from its config: the same for one that starts and one that is opened again.

with apart(config):
    parts = check(config)        # all that can be wrong is found before a weight is loaded
    model = load(parts)          # backbone, fresh head, and the variant attached
    loop(parts, model, folder, device)
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn

from trainer import data, metrics, pages, processes
from trainer import model as models
from trainer.batches import total_steps
from trainer.errors import ConfigError
from trainer.loop import Loop
from trainer.plan import make, model_sources, named
from trainer.sources import fetch_model, hub
from variants.core import kernel
from variants.core.variant import Variant

ADAPTER = Path("adapter") / "state"  # in a run's folder: what training changed


@dataclass(frozen=True)
class Parts:
    """A run before any weight is loaded.

    source: the folder of model and tokenizer. max_length: tokens of the longest text. head: names of the
    modules that belong to the task.
    """

    config: DictConfig
    variant: Variant
    source: Path
    max_length: int
    rows: data.Prepared
    head: Sequence[str]

    @property
    def labels(self) -> int:
        """Outputs of the model: classes, or 1 for a regression."""
        return 1 if self.rows.labels is None else len(self.rows.labels)

    def base(self) -> nn.Module:
        """A copy of the model without the variant: backbone in the run's dtype, head drawn with its seed."""
        source = models.pristine(self.source, self.labels, self.config.model.get("dropout"))
        return models.fresh(source, self.config.seed, self.config.model.dtype)

    def reference(self) -> tuple[str, str | None]:
        """Where others find the model: its id and revision on the Hub, or the folder where it isn't there."""
        return hub.reference(model_sources(self.config)) or (str(self.source), None)


@contextlib.contextmanager
def apart(config: DictConfig) -> Iterator[None]:
    """Within it a run has the process for itself: torch's threads, its draws, the kernel."""
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[]):
            if config.machine.threads is not None:
                torch.set_num_threads(config.machine.threads)
            kernel.use(config.machine.kernel, bool(config.train.recompute))
            pages.keep()
            yield
    finally:
        torch.set_num_threads(threads)
        gc.collect()
        pages.give_back()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def check(config: DictConfig) -> Parts:
    """Everything that a run needs but weights. Raises `ConfigError`."""
    variant: Variant = make("variant", config.variant)
    source = fetch_model(model_sources(config), config.model.files)
    positions = models.longest_text(source)
    max_length = min(config.data.max_length, positions or config.data.max_length)
    metrics.check(config.task.metrics, regression=data.load(config.task).labels is None)
    rows = data.prepare(config.task, config.data, config.seed, source, max_length)
    named("variant", variant.plan, total_steps(len(rows.train), config.train))
    bare = models.skeleton(source, 1 if rows.labels is None else len(rows.labels))
    parts = Parts(config, variant, source, max_length, rows, models.head_modules(bare))
    named("variant", variant.check, bare, parts.head)
    return parts


def load(parts: Parts) -> nn.Module:
    """The model with the variant attached. Raises `ConfigError`."""
    base = parts.base()
    backbone = list(base.parameters())
    model = named("variant", parts.variant.attach, base, parts.head)
    models.refuse_half_precision(model, parts.variant.name)
    if parts.config.train.recompute and not any(adapter.recomputes for adapter in parts.variant.adapters.values()):
        name = parts.variant.name
        raise ConfigError(
            f"train.recompute: true with variant {name}, allowed: null; it keeps nothing to compute again"
        )
    if parts.config.machine.fsdp and processes.count() > 1:
        from trainer import sharding  # here, because torch's part of it takes a second to import

        sharding.shard(model, backbone, parts.variant, device(parts.config.machine.device))
    return model


def loop(parts: Parts, model: nn.Module, folder: Path, device: torch.device) -> Loop:
    """What trains and evaluates `model`; its files are in `folder`."""
    return Loop(
        model=model,
        variant=parts.variant,
        head=parts.head,
        rows=parts.rows,
        task=parts.config.task,
        config=parts.config,
        folder=folder,
        tokens=parts.source,
        device=device,
    )


def device(name: str) -> torch.device:
    """The device that `machine.device` means. Raises `ConfigError` where it isn't there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"machine.device: {name!r}, allowed here, without a CUDA device: auto, cpu")
    return torch.device(name)
