"""Shards the frozen backbone over the processes of a run (FSDP); trainable parameters are replicated.

Each process keeps 1/n of every frozen weight. `torch.distributed.fsdp.fully_shard` gathers a block's weights before its
forward and its backward pass and frees them afterwards, so that results are bit-identical to an unsharded backbone.
Adapters, head and everything else that a variant creates are ordinary tensors on every process. They are resized,
saved and loaded as usual, and checkpoints do not depend on sharding. It saves memory from the first step on; before
that every process has loaded the whole model.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from trainer.errors import ConfigError
from trainer.machine.processes import count
from variants.core.variant import Variant


def refuse_readers(variant: Variant) -> None:
    """Raises `ConfigError` for a variant that reads frozen weights outside a forward or backward pass."""
    if (field := variant.needs_whole_weights()) is not None:
        raise ConfigError(f"machine.fsdp: true with variant.{field}, allowed: false; it reads weights between passes")


def shard(model: nn.Module, backbone: Iterable[nn.Parameter], variant: Variant, device: torch.device) -> None:
    """Shards the frozen parameters of `backbone`: those that `model` had before `variant` was attached.

    Raises `ConfigError` for a variant that reads them between passes or leaves none frozen.
    """
    refuse_readers(variant)
    frozen = {id(parameter) for parameter in backbone if not parameter.requires_grad}
    replicated = {parameter for parameter in model.parameters() if id(parameter) not in frozen}
    if len(replicated) == len(list(model.parameters())):
        raise ConfigError(f"machine.fsdp: true with {variant.name}, allowed: false; it leaves no weight frozen")
    mesh = init_device_mesh(device.type, (count(),))
    for module in [*_blocks(model), model]:
        fully_shard(module, mesh=mesh, ignored_params=replicated, reshard_after_forward=True)


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The outermost modules in a `ModuleList`: the layers of a transformer."""
    blocks = []
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            blocks += [entry for entry in child if not isinstance(entry, nn.ModuleList | nn.ModuleDict)]
        else:
            blocks += _blocks(child)
    return blocks
