"""Resizing a parameter together with its gradient and its optimizer state.

A new `Parameter` replaces the old one in its module, in its optimizer group (whose learning rate it keeps) and in the
optimizer's state. Its gradient and its moments are sliced or padded in the same way; an entry of the state counts as a
moment if it has the parameter's shape. It must be a new object, because autograd keeps the old shape as long as an old
loss exists.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


@torch.no_grad()
def keep(module: nn.Module, name: str, index: torch.Tensor, dim: int, optimizer: torch.optim.Optimizer | None) -> None:
    """Keep the slices `index` (n,) of the parameter `module.name` along `dim` and free the others.

    optimizer: None if there is none yet, as when a saved state is loaded.
    """
    _replace(module, name, lambda tensor: tensor.index_select(dim, index.to(tensor.device)), optimizer)


@torch.no_grad()
def append(module: nn.Module, name: str, new: torch.Tensor, dim: int, optimizer: torch.optim.Optimizer | None) -> None:
    """Append `new` to the parameter `module.name`; gradient and moments of the new entries are zero."""
    size = new.shape[dim]

    def pad(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, torch.zeros_like(new, dtype=tensor.dtype, device=tensor.device)], dim)

    _replace(module, name, pad, optimizer)
    parameter = module.get_parameter(name)
    parameter.narrow(dim, parameter.shape[dim] - size, size).copy_(new)


@torch.no_grad()
def renew(module: nn.Module, name: str, index: torch.Tensor, optimizer: torch.optim.Optimizer | None) -> None:
    """Move the entries `index` (n,) of the vector `module.name` to its front and set all others to zero.

    The values are those after `keep` and an `append` of zeros to the old size, but the parameter, its gradient and its
    moments stay the same objects.
    """
    for tensor in _vectors(module, name, optimizer):
        kept = tensor.index_select(0, index)
        tensor[: len(index)] = kept
        tensor[len(index) :] = 0.0


@torch.no_grad()
def rearrange(
    module: nn.Module,
    name: str,
    old: torch.Tensor,
    new: torch.Tensor,
    size: int,
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """Move the entries of the vector `module.name` from the places `old` to `new`, both (n,) in a vector of `size`.

    Those that stay at their places keep value, gradient and moments; others start at zero. If there are as many as
    before, the parameter, its gradient and its moments stay the same objects.
    """

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.new_zeros(size).index_copy_(0, old, tensor)[new]

    if len(new) != len(old):
        _replace(module, name, moved, optimizer)
        return
    for tensor in _vectors(module, name, optimizer):
        tensor.copy_(moved(tensor))


def _vectors(module: nn.Module, name: str, optimizer: torch.optim.Optimizer | None) -> list[torch.Tensor]:
    """Return the vector `module.name`, its moments and its gradient."""
    parameter = module.get_parameter(name)
    state = {} if optimizer is None else optimizer.state.get(parameter, {})
    moments = [e for e in state.values() if isinstance(e, torch.Tensor) and e.shape == parameter.shape and e.ndim]
    return [parameter, *moments, *([] if parameter.grad is None else [parameter.grad])]


def _replace(
    module: nn.Module,
    name: str,
    change: Callable[[torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """Replace the parameter by `change(parameter)`, and its gradient and moments accordingly."""
    old = module.get_parameter(name)
    new = nn.Parameter(change(old.detach()), requires_grad=old.requires_grad)
    if old.grad is not None:
        new.grad = change(old.grad)
    setattr(module, name, new)
    if optimizer is None:
        return
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    if old in optimizer.state:
        optimizer.state[new] = {
            key: change(entry) if isinstance(entry, torch.Tensor) and entry.shape == old.shape and entry.ndim else entry
            for key, entry in optimizer.state.pop(old).items()
        }
