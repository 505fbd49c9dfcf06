"""Parameters that join training while it runs: their optimizer group and their own learning-rate curve."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class OwnWarmup:
    """Linear warm-up over `warmup` steps from the step after `born`, then linear decay to zero at `total`.

    Called with the scheduler's count of steps made, it gives the share of the group's rate. At birth the
    share is one, but a parameter that was just born has no gradient yet.
    """

    born: int
    total: int
    warmup: int

    def __call__(self, step: int) -> float:
        age, length = step - self.born, self.total - self.born
        if age < self.warmup:
            return age / self.warmup
        return max(0.0, (length - age) / max(1, length - self.warmup))


def join(
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    parameters: Iterable[nn.Parameter],
    like: nn.Parameter,
    curve: OwnWarmup | None = None,
) -> None:
    """Adds `parameters` to training with the options of the group that `like` is in.

    curve: their own share of the learning rate over the steps; None to follow the curve of `like`.
    Raises `ValueError` for a schedule that can't take a curve of one group's own.
    """
    place = next(i for i, group in enumerate(optimizer.param_groups) if any(p is like for p in group["params"]))
    if curve is None:
        optimizer.param_groups[place]["params"].extend(parameters)
        return
    if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        raise ValueError(
            f"optim.schedule: {type(scheduler).__name__} gives no group a warm-up of its own, allowed: linear"
        )
    options = {key: value for key, value in optimizer.param_groups[place].items() if key != "params"}
    optimizer.add_param_group({**options, "params": list(parameters), "lr": options["initial_lr"]})
    scheduler.base_lrs.append(options["initial_lr"])
    scheduler.lr_lambdas.append(curve)
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


def leave(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Takes `parameters` out of training: out of their groups and of the optimizer's state."""
    gone = {id(parameter) for parameter in parameters}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in gone:
                optimizer.state.pop(parameter, None)
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in gone]
