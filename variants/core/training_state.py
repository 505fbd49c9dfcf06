"""What training changes, taken out of live objects and put back: everything but the frozen backbone.

Parameters go by name, also in the optimizer's state, so that what grew or was pruned during
training finds its place again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from variants.core.adapters.grow import OwnWarmup
from variants.core.state_files import CorruptState
from variants.core.target_modules import inside
from variants.core.variant import AdapterVariant, Variant


def weights(model: nn.Module, variant: Variant, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What training has changed: the trained parameters by name, and the variant's own state.

    `layers` has the size [out, in] of every adapted layer, for readers that have no model: places in a
    matrix mean nothing without it.
    """
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    parameters = {name: p.detach() for name, p in model.named_parameters() if id(p) in trained}
    adapters = variant.adapters if isinstance(variant, AdapterVariant) else {}
    layers = {name: [adapter.out_features, adapter.in_features] for name, adapter in adapters.items()}
    return {"parameters": parameters, "variant": variant.state_dict(), "layers": layers}


def restore_weights(model: nn.Module, variant: Variant, state: Mapping[str, Any]) -> None:
    """Puts back what `weights` took; the variant first, for it may reshape parameters."""
    variant.load_state_dict(state["variant"])
    _put_back(model, state["parameters"])


def start_from(model: nn.Module, variant: Variant, state: Mapping[str, Any], left_out: Sequence[str] = ()) -> None:
    """Gives a new run what `weights` took of a finished one, without the parameters of the modules `left_out`."""
    variant.start_from(state["variant"])
    _put_back(model, {name: tensor for name, tensor in state["parameters"].items() if not inside(name, left_out)})


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's groups and moments with parameters by name, so that groups may grow."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [
        {name: value for name, value in group.items() if name != "params"}
        | {"parameters": [names[id(parameter)] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    return {"groups": groups, "state": {names[id(p)]: dict(entry) for p, entry in optimizer.state.items()}}


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Puts back what `optimizer_state` took, groups that were added during training included."""
    parameters = dict(model.named_parameters())
    optimizer.param_groups[:] = [
        {"params": [parameters[name] for name in group["parameters"]]}
        | {name: value for name, value in group.items() if name != "parameters"}
        for group in state["groups"]
    ]
    # Adam keeps its step count on the CPU whatever device the moments are on, unless it runs in one call there.
    counts_there = {id(p) for g in optimizer.param_groups if g.get("fused") or g.get("capturable") for p in g["params"]}
    optimizer.state.clear()
    for name, entry in state["state"].items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            key: value.to(parameter.device)
            if isinstance(value, torch.Tensor) and (key != "step" or id(parameter) in counts_there)
            else value
            for key, value in entry.items()
        }


def schedule_state(scheduler: torch.optim.lr_scheduler.LRScheduler) -> dict[str, Any]:
    """The schedule's counters, and the curves of groups that joined during training."""
    return scheduler.state_dict()


def restore_schedule(scheduler: torch.optim.lr_scheduler.LRScheduler, state: Mapping[str, Any]) -> None:
    """Puts back what `schedule_state` took; call it after `restore_optimizer`."""
    curves = state.get("lr_lambdas", [])
    if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        scheduler.lr_lambdas.extend(OwnWarmup(**curve) for curve in curves[len(scheduler.lr_lambdas) :])
    scheduler.load_state_dict(dict(state))


@torch.no_grad()
def _put_back(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copies `tensors` into the parameters of the same names, which must have the same shapes."""
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name not in parameters:
            raise CorruptState(f"the model has no parameter {name!r}")
        if parameters[name].shape != tensor.shape:
            found, saved = tuple(parameters[name].shape), tuple(tensor.shape)
            raise CorruptState(f"{name}: shape {found} in the model, {saved} in the state")
        parameters[name].copy_(tensor)
