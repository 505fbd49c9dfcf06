"""The optimizer and its schedule, from the config and what the variant asks for."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from trainer.errors import ConfigError, message
from trainer.instantiate import make
from trainer.loop import schedules
from variants.core.target_modules import inside
from variants.core.variant import Variant


def build_optimizer(
    model: nn.Module, head: Sequence[str], variant: Variant, optim: DictConfig, fused: bool = False
) -> torch.optim.Optimizer:
    """One group for each set of options: head or not, decayed or not, what the variant says.

    Weight decay acts where the variant says so; on a model's own weights, and in the head, it acts on matrices alone.

    fused: whether the optimizer takes its step in one call where its class can and the config chooses no way of
        its own. An adapter has many small parameters: one by one, AdamW takes five times as long over them.
    """
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        in_head = inside(name, head)
        own = {} if in_head else dict(variant.optimizer_options(name))
        base = optim.head_lr if in_head and optim.head_lr is not None else optim.lr
        said = None if in_head else variant.decays(name)
        decays = parameter.ndim >= 2 if said is None else said
        options = {
            "lr": base * own.pop("lr_scale", 1.0),
            "weight_decay": optim.weight_decay if decays else 0.0,
        } | own
        key = (in_head, *sorted(options.items()))  # a variant may change the options of its own groups
        groups.setdefault(key, {"params": [], **options})["params"].append(parameter)
    found = make("optim.optimizer", optim.optimizer, _partial_=True)
    return found(list(groups.values()), **(_one_call(found.func, optim.optimizer) if fused else {}))


def check(optim: DictConfig) -> None:
    """Takes one step on one parameter. Raises `ConfigError` for an optimizer that can't be made or that can't train.

    The error names the setting that alone, beside the class's defaults, is refused.
    """
    for name in ("params", "lr", "weight_decay"):
        if name in optim.optimizer:
            raise ConfigError(f"optim.optimizer.{name}: no such field; optim.lr and optim.weight_decay set these")
    made = make("optim.optimizer", optim.optimizer, _partial_=True)
    cls, settings = made.func, made.keywords
    if optim.weight_decay and "weight_decay" not in inspect.signature(cls).parameters:
        raise ConfigError(f"optim.weight_decay: {optim.weight_decay}, allowed with {cls.__name__}: 0; it has none")
    trouble = _refusal(cls, optim, settings)
    if trouble is None:
        return
    if _refusal(cls, optim, {}) is None:
        for name, value in settings.items():
            if (reason := _refusal(cls, optim, {name: value})) is not None:
                raise ConfigError(f"optim.optimizer.{name}: {value!r}, {cls.__name__} refuses it: {reason}")
    raise ConfigError(f"optim.optimizer._target_: {cls.__name__} can't train with these settings: {trouble}")


def _refusal(cls: type[torch.optim.Optimizer], optim: DictConfig, settings: Mapping[str, Any]) -> str | None:
    """Why the optimizer can't take a step, in its own words; None if it can."""
    parameter = torch.zeros(2, 2, requires_grad=True)
    parameter.grad = torch.zeros(2, 2)
    group = {"params": [parameter], "lr": optim.lr, "weight_decay": optim.weight_decay}
    try:
        cls([group], **settings).step()
    except Exception as error:  # whatever a class of the user's may raise
        return message(error) or type(error).__name__
    return None


def _one_call(cls: type[torch.optim.Optimizer], given: Mapping[str, Any]) -> dict[str, bool]:
    """The option that has `cls` take its step in one call; none where it has no such option or the user chose."""
    can = "fused" in inspect.signature(cls).parameters
    chosen = any(given.get(name) is not None for name in ("fused", "foreach", "capturable", "differentiable"))
    return {"fused": True} if can and not chosen else {}


def build_schedule(
    optimizer: torch.optim.Optimizer, optim: DictConfig, total: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning-rate schedule over `total` steps; a warmup below 1 is a share of them."""
    warmup = int(optim.warmup if optim.warmup >= 1 else math.ceil(optim.warmup * total))
    factor = schedules.factor(optim.schedule, warmup, total, optimizer.defaults.get("lr", optim.lr))
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
