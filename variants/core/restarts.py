"""What happens when factors begin again: the learning rate warms up anew, and the optimizer's moments are pruned."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.optim.lr_scheduler import LambdaLR

from variants.core.adapters.adapter import LowRank
from variants.core.variant import Step

RESETS = ("random", "magnitude", "zero")
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Restarts:
    """The released cosine schedule with a warm-up at the start and after every restart; the factor by step, from 0.

    total: steps of the run. first, again: steps of warm-up, at the start and after a restart. every: steps between two
    restarts. least: the factor at the end. shift: steps by which the restarts come earlier.
    """

    total: int
    first: int
    again: int
    every: int
    least: float
    shift: int = 0

    def __call__(self, step: int) -> float:
        if step < self.first:
            return step / max(1, self.first)
        number, since = divmod(step + self.shift, self.every)
        if since < self.again and step >= self.every:
            return since / max(1, self.again) * self._decay(number * self.every + self.again)
        return self._decay(step + self.shift)

    def _decay(self, step: int) -> float:
        progress = (step - self.first) / max(1, self.total - self.first)
        return self.least + (1 - self.least) * 0.5 * (1 + math.cos(math.pi * progress))

    def replace_schedule(self, step: Step, field: str) -> None:
        """Put the curve in place of the run's schedule, once. field: that asks for it, for the error.

        Raises `ValueError` for a schedule that can't be replaced.
        """
        scheduler = step.scheduler
        if not isinstance(scheduler, LambdaLR):
            kind = type(scheduler).__name__
            raise ValueError(f"optim.schedule: {kind} with {field} can't be replaced, allowed: linear")
        if all(isinstance(curve, Restarts) for curve in scheduler.lr_lambdas):
            return
        scheduler.lr_lambdas = [self] * len(scheduler.lr_lambdas)
        for group, base in zip(step.optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = base * self(step.index - 1)


def reset_moments(
    name: str, adapter: LowRank, optimizer: torch.optim.Optimizer, after: Callable[[str, torch.Tensor], torch.Tensor]
) -> None:
    """Replace the moments of A and B of the layer `name` by what `after` returns, given "layer.part.moment" and it."""
    for part in ("A", "B"):
        state = optimizer.state.get(adapter.get_parameter(part), {})
        for moment in MOMENTS:
            if moment in state:
                state[moment].copy_(after(f"{name}.{part}.{moment}", state[moment]))


def after_reset(moment: torch.Tensor, reset: str, pruned: float) -> torch.Tensor:
    """Return what is left of a moment. reset: of `RESETS`. pruned: fraction, or probability, of entries set to zero."""
    if reset == "zero":
        return torch.zeros_like(moment)
    if reset == "random":
        return moment * (torch.rand_like(moment) > pruned)
    size = moment.abs().float()
    return moment * (size > torch.quantile(size, pruned))
