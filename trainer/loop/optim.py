"""Builds the optimizer and its schedule from the config and the variant's options."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from trainer.errors import ConfigError, RunFailed, message
from trainer.instantiate import make
from trainer.loop import schedules
from variants.core.parameter_groups import parameter_groups
from variants.core.variant import Variant


def build_optimizer(
    model: nn.Module, head: Sequence[str], variant: Variant, optim: DictConfig, fused: bool = False
) -> torch.optim.Optimizer:
    """Makes the optimizer over `parameter_groups`.

    fused: whether to use the class's fused step if it has one and the config chooses none. An adapter has many small
        parameters, over which AdamW's loop takes five times as long.
    """
    groups = parameter_groups(model, head, variant, optim.lr, optim.head_lr, optim.weight_decay)
    factory = make("optim.optimizer", optim.optimizer, _partial_=True)
    optimizer: torch.optim.Optimizer = factory(
        groups, **(_fused_option(factory.func, optim.optimizer) if fused else {})
    )
    watch_moments(optimizer)
    return optimizer


def watch_moments(optimizer: torch.optim.Optimizer) -> None:
    """Lets a fused step raise `RunFailed` if a moment has another shape than its parameter; others do anyway."""
    if optimizer.defaults.get("fused"):
        optimizer.register_step_pre_hook(_refuse_other_shapes)


def _refuse_other_shapes(optimizer: torch.optim.Optimizer, _: object, __: object) -> None:
    """Raises `RunFailed` if a moment has another shape than its parameter: torch's fused step reads past its end."""
    for parameter, state in optimizer.state.items():
        for name, moment in state.items():
            if torch.is_tensor(moment) and moment.dim() and moment.shape != parameter.shape:
                raise RunFailed(
                    f"optimizer: {name} of shape {tuple(moment.shape)}, allowed: {tuple(parameter.shape)}, its"
                    " parameter's; adapter.keep(), append() and variants.core.adapters.resize change both"
                )


def check(optim: DictConfig) -> None:
    """Tries one step on one parameter. Raises `ConfigError` for an optimizer that can't be constructed or stepped.

    The error names the setting that the class refuses by itself, with its defaults for all others.
    """
    for name in ("params", "lr", "weight_decay"):
        if name in optim.optimizer:
            raise ConfigError(f"optim.optimizer.{name}: no such field; optim.lr and optim.weight_decay set these")
    factory = make("optim.optimizer", optim.optimizer, _partial_=True)
    cls, settings = factory.func, factory.keywords
    if optim.weight_decay and "weight_decay" not in inspect.signature(cls).parameters:
        raise ConfigError(f"optim.weight_decay: {optim.weight_decay}, allowed with {cls.__name__}: 0; it has none")
    refusal = _refusal(cls, optim, settings)
    if refusal is None:
        return
    if _refusal(cls, optim, {}) is None:
        for name, value in settings.items():
            if (reason := _refusal(cls, optim, {name: value})) is not None:
                raise ConfigError(f"optim.optimizer.{name}: {value!r}, {cls.__name__} refuses it: {reason}")
    raise ConfigError(f"optim.optimizer._target_: {cls.__name__} can't train with these settings: {refusal}")


def _refusal(cls: type[torch.optim.Optimizer], optim: DictConfig, settings: Mapping[str, Any]) -> str | None:
    """Returns the optimizer's error message for a step; None if the step succeeds."""
    parameter = torch.zeros(2, 2, requires_grad=True)
    parameter.grad = torch.zeros(2, 2)
    group = {"params": [parameter], "lr": optim.lr, "weight_decay": optim.weight_decay}
    try:
        cls([group], **settings).step()
    except Exception as error:  # a user's class may raise anything
        return message(error) or type(error).__name__
    return None


def _fused_option(cls: type[torch.optim.Optimizer], settings: Mapping[str, Any]) -> dict[str, bool]:
    """Returns the option for a fused step; empty if `cls` lacks it or the user chose an implementation."""
    available = "fused" in inspect.signature(cls).parameters
    chosen = any(settings.get(name) is not None for name in ("fused", "foreach", "capturable", "differentiable"))
    return {"fused": True} if available and not chosen else {}


def set_mode(optimizer: torch.optim.Optimizer, mode: str) -> None:
    """Calls `train` or `eval` of an optimizer with such modes, such as a schedule-free one."""
    if callable(switch := getattr(optimizer, mode, None)):
        switch()


def build_schedule(
    optimizer: torch.optim.Optimizer, optim: DictConfig, total: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Builds the learning-rate schedule over `total` steps; a warmup below 1 is a fraction of them."""
    warmup = int(optim.warmup if optim.warmup >= 1 else math.ceil(optim.warmup * total))
    factor = schedules.factor(optim.schedule, warmup, total, optimizer.defaults.get("lr", optim.lr))
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
