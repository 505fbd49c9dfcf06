"""Adding parameters to a running optimizer and removing them: their group, and a warm-up of their own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class OwnWarmup:
    """Linear warm-up over `warmup` steps from the step after `born`, then linear decay to zero at `total`.

    Called with the scheduler's step count, it returns the factor of the group's learning rate. In the step in which it
    is added a group has its full rate, but a new parameter has no gradient yet.
    """

    born: int
    total: int
    warmup: int

    def __call__(self, step: int) -> float:
        age, length = step - self.born, self.total - self.born
        if age < self.warmup:
            return age / self.warmup
        return max(0.0, (length - age) / max(1, length - self.warmup))


def add_params(
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    parameters: Iterable[nn.Parameter],
    like: nn.Parameter,
    curve: OwnWarmup | None = None,
) -> None:
    """Add `parameters` to the optimizer with the options of the group that contains `like`.

    curve: factor of the learning rate over the steps; None to follow the curve of `like`.
    Raises `ValueError` if the schedule can't have a separate curve for one group.
    """
    index = next(i for i, group in enumerate(optimizer.param_groups) if any(p is like for p in group["params"]))
    if curve is None:
        optimizer.param_groups[index]["params"].extend(parameters)
        return
    if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        raise ValueError(
            f"optim.schedule: {type(scheduler).__name__} can't warm up one group by itself, allowed: linear"
        )
    options = {key: value for key, value in optimizer.param_groups[index].items() if key != "params"}
    optimizer.add_param_group({**options, "params": list(parameters), "lr": options["initial_lr"]})
    scheduler.base_lrs.append(options["initial_lr"])
    scheduler.lr_lambdas.append(curve)
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


def remove_params(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Remove `parameters` from the optimizer's groups and state."""
    removed = {id(parameter) for parameter in parameters}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in removed:
                optimizer.state.pop(parameter, None)
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in removed]


def hold_rate(optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LambdaLR) -> None:
    """Set the learning rate of every group to its base value for the rest of the run."""
    scheduler.lr_lambdas = [_one] * len(scheduler.lr_lambdas)
    for group, base in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
        group["lr"] = base


def _one(step: int) -> float:
    return 1.0
