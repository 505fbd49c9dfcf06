"""The frozen backbone divided among the processes of a run (FSDP); what is trained stays whole on each of them.

Each process keeps 1/n of every frozen weight. `torch.distributed.fsdp.fully_shard` puts a block's weights together
before its forward and its backward pass and lets go of them after it, so that the numbers, to the bit, are those of
a backbone that is whole. Adapters, head and everything else that a variant has made are ordinary tensors on every
process: they are resized, saved and loaded as ever, and a checkpoint knows nothing of this. Memory is saved from the
first step on; before it every process has loaded the whole model.
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
    """Raises `ConfigError` for a variant that needs the frozen weights whole."""
    if (field := variant.needs_whole_weights()) is not None:
        raise ConfigError(f"machine.fsdp: true with variant.{field}, allowed: false; it reads weights between passes")


def shard(model: nn.Module, backbone: Iterable[nn.Parameter], variant: Variant, device: torch.device) -> None:
    """Divides the frozen ones among `backbone`, the parameters that `model` had before `variant` was attached.

    Raises `ConfigError` for a variant that needs them whole, or leaves none frozen.
    """
    refuse_readers(variant)
    frozen = {id(parameter) for parameter in backbone if not parameter.requires_grad}
    whole = {parameter for parameter in model.parameters() if id(parameter) not in frozen}
    if len(whole) == len(list(model.parameters())):
        raise ConfigError(f"machine.fsdp: true with {variant.name}, allowed: false; it leaves no weight frozen")
    mesh = init_device_mesh(device.type, (count(),))
    for module in [*_blocks(model), model]:
        fully_shard(module, mesh=mesh, ignored_params=whole, reshard_after_forward=True)


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The outermost modules that stand in a list and are called as one: the layers of a transformer."""
    found = []
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            found += [entry for entry in child if not isinstance(entry, nn.ModuleList | nn.ModuleDict)]
        else:
            found += _blocks(child)
    return found
