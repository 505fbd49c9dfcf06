"""Passes before training over the data loader of transformers' Trainer, for methods that decide by them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from trainer.errors import ConfigError
from variants.core.passes import Passes
from variants.core.step import Loss

Batch = Mapping[str, Any]


def passes_over(loader: Any, model: nn.Module, args: TrainingArguments) -> Passes[Batch]:
    """Returns the passes over the rows in the order of the run's first steps, whose loss is the model's own.

    Passes raise `ConfigError` for batches without labels.
    """
    from accelerate.utils import send_to_device

    plain = getattr(loader, "base_dataloader", loader)  # accelerate's own iteration would count as training

    def batches() -> Iterator[list[Batch]]:
        for epoch in itertools.count():
            if hasattr(loader, "set_epoch"):
                loader.set_epoch(epoch)
            found = _drawing_apart(plain)
            while step := list(itertools.islice(found, args.gradient_accumulation_steps)):
                yield [send_to_device(batch, args.device) for batch in step]

    def steps(count: int) -> Iterator[list[Batch]]:
        return itertools.islice(batches(), count)

    def rows(count: int) -> Iterator[Batch]:
        left = count
        for batch in _drawing_apart(plain):
            size = len(_labels(batch))
            on_device = send_to_device(batch, args.device)
            for row in range(min(size, left)):
                yield {
                    name: value[row : row + 1] if isinstance(value, torch.Tensor) and len(value) == size else value
                    for name, value in on_device.items()
                }
            left -= min(size, left)
            if not left:
                return
        raise ValueError(f"samples: {count}, allowed: at most the {count - left} training rows")

    def loss(batch: Batch) -> Loss:
        outputs = model(**batch)
        mean = outputs["loss"] if isinstance(outputs, Mapping) else outputs[0]
        weight = _units(model, batch)
        return Loss(mean * weight, weight)

    def logits(batch: Batch) -> torch.Tensor | None:
        found = model(**{name: value for name, value in batch.items() if name != "labels"})["logits"]
        return found if found.ndim == 2 and batch["labels"].ndim == 1 else None

    def real(batch: Batch) -> torch.Tensor | None:
        mask = batch.get("attention_mask")
        return None if mask is None or mask.ndim != 2 else mask.bool()

    return Passes(model, steps, rows, loss, lambda batch: _units(model, batch), real, logits)


def _drawing_apart(loader: Any) -> Iterator[Batch]:
    """Yields the loader's batches; what it draws does not change what the method draws between them."""
    state, iterator = torch.get_rng_state(), None
    while True:
        own = torch.get_rng_state()
        torch.set_rng_state(state)
        try:
            iterator = iterator or iter(loader)
            batch = next(iterator)
        except StopIteration:
            return
        finally:
            state = torch.get_rng_state()
            torch.set_rng_state(own)
        yield batch


def _units(model: nn.Module, batch: Batch) -> int:
    """Returns the number of labels that the model's loss averages over."""
    labels = _labels(batch)
    if labels.is_floating_point():
        return int(labels.numel())
    causal = getattr(model, "loss_type", None) == "ForCausalLM"
    return int((labels[..., 1:] if causal else labels).ne(-100).sum())


def _labels(batch: Batch) -> torch.Tensor:
    labels: torch.Tensor | None = batch.get("labels")
    if labels is None:
        raise ConfigError("train_dataset: batches without labels, allowed: labels; passes before training need them")
    return labels
