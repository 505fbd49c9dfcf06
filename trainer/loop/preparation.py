"""The passes before the first step that a variant asks for: made once, of a new run, and what they cost."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from trainer.instantiate import named
from trainer.loop import checkpoints, cost
from trainer.loop.batches import Batch, Batches
from trainer.machine import processes
from trainer.objectives.objective import Objective
from variants.core import collectives
from variants.core.passes import Passes
from variants.core.step import Loss
from variants.core.variant import Variant


@dataclass(frozen=True)
class Prepared:
    """What the passes cost, and the method as it starts after them; part of every checkpoint.

    seconds, passes: time and forward passes. rss, cuda: bytes at the peak, None where not measured.
    total: all parameters. adapter: trainable ones outside the head. formula: `closed_form`. rank: the sum of ranks.
    """

    seconds: float
    passes: int
    rss: int | None
    cuda: int | None
    total: int
    adapter: int
    formula: int | None
    rank: int | None


def passes_over(
    model: nn.Module, batches: Batches, objective: Objective, network: Any, loss: Callable[[Batch], Loss]
) -> Passes[Batch]:
    """The passes over the rows of the run's first steps. loss: runs the forward pass of a batch."""

    def first(count: int) -> Iterator[Sequence[Batch]]:
        return itertools.islice(batches.steps(0), count)

    def real(batch: Batch) -> torch.Tensor | None:
        places = objective.places(batch, network.source)
        return None if places is None else places.to(batches.device)

    return Passes(
        model,
        first,
        batches.single,
        loss,
        weight=lambda batch: processes.sum_of(batch.weight),
        real=real,
        logits=lambda batch: objective.class_logits(network, batch.to(batches.device)),
    )


def hold(variant: Variant, passes: Passes[Batch]) -> None:
    """Calls `hold_passes` of a variant, which draws nothing from the run's random numbers. Raises `ConfigError`."""
    random = checkpoints.random_state()
    named("variant", variant.hold_passes, passes)
    checkpoints.restore_random(random)


def prepare(
    variant: Variant, model: nn.Module, head: Sequence[str], passes: Passes[Batch], device: torch.device
) -> dict[str, Any] | None:
    """Calls `before_training` of a variant that has it; the fields of `Prepared`, None where there is no such hook.

    Raises `ConfigError`.
    """
    if type(variant).before_training is Variant.before_training:
        return None
    cost.reset_cuda_peaks(device)
    begun = time.perf_counter()
    # What follows draws what it draws for a method without passes, however many there were.
    random = checkpoints.random_state()
    with collectives.same_draws():
        named("variant", variant.before_training, passes)
    checkpoints.restore_random(random)
    seconds = time.perf_counter() - begun
    adapter, _ = cost.trainable_parameters(model, head)
    ranks = variant.ranks()
    cuda, _ = cost.cuda_peaks(device)
    cost.reset_cuda_peaks(device)
    rank = sum(ranks.values()) if ranks else None
    count = passes.count + processes.sum_of(passes.single)
    total = cost.parameters(model)
    return asdict(Prepared(seconds, count, cost.peak_rss(), cuda, total, adapter, variant.closed_form(), rank))
