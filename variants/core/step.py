"""One optimizer step, as documented in `variants.core.variant`; used by trainer, contract and benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from variants.core import collectives
from variants.core.variant import Step, Variant

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Loss:
    """The task loss of one batch, without the method's penalty.

    sum: over the rows of the batch, or over the units that the task's loss averages. weight: number of these units; 0
    for a batch that must not count.
    """

    sum: torch.Tensor
    weight: float

    @property
    def mean(self) -> torch.Tensor:
        return self.sum / max(self.weight, 1)


@dataclass(frozen=True)
class Taken:
    """The results of a step.

    task_loss: mean over all units of the step's batches, of all processes. penalty: mean over this process's batches,
    None for a method without one. norm: norm of all gradients before clipping. moved: whether the norm was finite; if
    not, no parameter has moved and the hooks after the backward passes were not called.
    """

    task_loss: torch.Tensor
    penalty: torch.Tensor | None
    norm: float
    moved: bool


def take(
    step: Step,
    variant: Variant,
    model: nn.Module,
    batches: Sequence[Batch],
    loss: Callable[[Batch], Loss],
    weight: float,
    max_norm: float = 0.0,
    watch: Callable[[str], None] = lambda event: None,
) -> Taken:
    """Take `step` on `batches`, whose gradients are accumulated.

    The step minimises Σ sum / `weight` + penalty, so every unit counts once, however the rows are divided among batches
    and processes, and the penalty counts once. It is computed for each batch, because a method may draw new random
    numbers for each, and weighted like the batch.

    loss: runs the forward pass. weight: of all batches of the step, on all processes. max_norm: norm to which gradients
    are clipped, 0 for no clipping. watch: is called with "begun", "gradients" (summed and clipped), "scored" (after
    `on_gradients`), "moved" (after the optimizer) and "updated"; a step that is not finite ends at "gradients".
    """
    model.train()
    with collectives.same_draws():
        variant.on_step_begin(step)
    watch("begun")
    losses, penalties = [], []
    for batch in batches:
        penalty = variant.penalty()
        task_loss = loss(batch)
        # Relative to the mean weight of the step's batches: exactly 1, without rounding, if all weights are equal.
        relative = task_loss.weight * len(batches) / weight
        mean = task_loss.mean
        losses.append(mean.detach() * relative)
        if penalty is not None:
            penalties.append(penalty.detach())
            mean = mean + penalty
        (mean * relative / len(batches)).backward()
    collectives.sum_gradients(model)
    norm = _clip(model, max_norm)
    moved = math.isfinite(norm)
    watch("gradients")
    if moved:
        with collectives.same_draws():
            variant.on_gradients(step)
        watch("scored")
        step.optimizer.step()
        watch("moved")
        with collectives.same_draws():
            variant.on_update(step)
        watch("updated")
    else:
        # Without gradients the optimizer changes neither parameters nor moments. The schedule expects the call.
        model.zero_grad()
        step.optimizer.step()
    step.scheduler.step()
    model.zero_grad()
    return Taken(
        task_loss=collectives.all_reduce_sum(torch.stack(losses).mean()),
        penalty=torch.stack(penalties).mean() if penalties else None,
        norm=norm,
        moved=moved,
    )


def _clip(model: nn.Module, max_norm: float) -> float:
    """Return the norm of all gradients of `model`, and clip them to `max_norm` unless that is 0.

    Reading it is the step's only synchronisation with the device.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if max_norm > 0:
        nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return float(norm)


__all__ = ["Loss", "Taken", "take"]
