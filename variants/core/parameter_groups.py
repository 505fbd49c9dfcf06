"""The optimizer's groups of a model with a variant attached: one for each set of options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from variants.core.target_modules import inside
from variants.core.variant import Variant


def parameter_groups(
    model: nn.Module, head: Sequence[str], variant: Variant, lr: float, head_lr: float | None, weight_decay: float
) -> list[dict[str, Any]]:
    """Return a group for each set of options: head, weight decay, and the variant's options.

    The variant decides which of its parameters are decayed; of all others, head included, only matrices are decayed.
    head_lr: None for `lr`.
    """
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        in_head = inside(name, head)
        requested = {} if in_head else dict(variant.optimizer_options(name))
        base = head_lr if in_head and head_lr is not None else lr
        decision = None if in_head else variant.decays(name)
        decays = parameter.ndim >= 2 if decision is None else decision
        options = {
            "lr": base * requested.pop("lr_scale", 1.0),
            "weight_decay": weight_decay if decays else 0.0,
        } | requested
        key = (in_head, *sorted(options.items()))  # apart from the head, because a variant may change its own groups
        groups.setdefault(key, {"params": [], **options})["params"].append(parameter)
    # An optimizer refuses an empty list, but not a group without parameters: those of a variant that trains nothing.
    return list(groups.values()) or [{"params": []}]


__all__ = ["parameter_groups"]
