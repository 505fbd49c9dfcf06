"""The optimizer and its schedule, from the config and what the variant asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from trainer.plan import make
from variants.core.targets import inside
from variants.core.variant import Variant


def build_optimizer(
    model: nn.Module, head: Sequence[str], variant: Variant, optim: DictConfig
) -> torch.optim.Optimizer:
    """One group for each set of options: head or adapter, decayed or not, what the variant says."""
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        in_head = inside(name, head)
        own = {} if in_head else dict(variant.optimizer_options(name))
        base = optim.head_lr if in_head and optim.head_lr is not None else optim.lr
        decay = optim.weight_decay if parameter.ndim >= 2 else 0.0
        options = {"lr": base * own.pop("lr_scale", 1.0), "weight_decay": decay} | own
        groups.setdefault(tuple(sorted(options.items())), {"params": [], **options})["params"].append(parameter)
    return make("optim.optimizer", optim.optimizer, _partial_=True)(list(groups.values()))


def build_schedule(optimizer: torch.optim.Optimizer, optim: DictConfig, total: int) -> Any:
    """The learning-rate schedule over `total` steps; a warmup below 1 is a share of them."""
    import transformers

    warmup = optim.warmup if optim.warmup >= 1 else math.ceil(optim.warmup * total)
    return transformers.get_scheduler(
        optim.schedule, optimizer=optimizer, num_warmup_steps=int(warmup), num_training_steps=total
    )
