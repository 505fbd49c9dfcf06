"""One optimizer step, as `variants.core.variant` documents it: of the trainer, the contract and the benchmarks."""

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
    """The task loss of one batch, without the penalty.

    sum: over the rows of the batch, or whatever the task's loss is a mean of. weight: how many these are; 0 for a
    batch that must not count.
    """

    sum: torch.Tensor
    weight: float

    @property
    def mean(self) -> torch.Tensor:
        return self.sum / max(self.weight, 1)


@dataclass(frozen=True)
class Taken:
    """What a step computed.

    task_loss: mean over all that the step's batches weigh, of all processes. penalty: mean over this process's
    batches, None for a method without one. norm: of all gradients, before they were clipped. moved: whether it was
    finite; if not, no parameter has moved and the hooks after the backward passes were not called.
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
    """Takes `step` on `batches`, whose gradients are accumulated.

    The step minimises Σ sum / `weight` + penalty: what counts once in a batch counts once in the step, however the
    rows are divided among batches and processes, and the penalty counts once. It is computed for each batch, for a
    method may draw anew for each, and weighed as the batch is.

    loss: runs the forward pass. weight: of all batches of the step, on all processes. max_norm: to which gradients are
    clipped, 0 to leave them. watch: is told "begun", "gradients" (summed and clipped), "scored" (after
    `on_gradients`), "moved" (after the optimizer) and "updated"; a step that is not finite ends at "gradients".
    """
    model.train()
    with collectives.same_draws():
        variant.on_step_begin(step)
    watch("begun")
    losses, penalties = [], []
    for batch in batches:
        penalty = variant.penalty()
        found = loss(batch)
        # To the mean weight of the step's batches: 1, and nothing is rounded, if all weigh the same.
        share = found.weight * len(batches) / weight
        mean = found.mean
        losses.append(mean.detach() * share)
        if penalty is not None:
            penalties.append(penalty.detach())
            mean = mean + penalty
        (mean * share / len(batches)).backward()
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
        # Without gradients the optimizer moves nothing: no parameter, no moment, no decay. The schedule wants the call.
        model.zero_grad()
        step.optimizer.step()
    step.scheduler.step()
    model.zero_grad()
    return Taken(
        task_loss=collectives.total(torch.stack(losses).mean()),
        penalty=torch.stack(penalties).mean() if penalties else None,
        norm=norm,
        moved=moved,
    )


def _clip(model: nn.Module, max_norm: float) -> float:
    """The norm of all gradients of `model`, which are scaled down to `max_norm` if that is not 0.

    Reading it synchronises with the device, the only time in a step.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if max_norm > 0:
        nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return float(norm)


__all__ = ["Loss", "Taken", "take"]
