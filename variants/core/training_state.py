"""State of a running training: reading it from the live objects and restoring it, without the frozen backbone.

Parameters are identified by name, also in the optimizer's state, so that grown and pruned ones can be restored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from variants.core.adapters.grow import OwnWarmup
from variants.core.state_files import CorruptState
from variants.core.target_modules import inside
from variants.core.variant import Variant


def weights(model: nn.Module, variant: Variant, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the trained parameters by name, the variant's state, and the adapted layers' sizes [out, in].

    The sizes are for readers without the model: indices into a flattened matrix mean nothing without its shape.
    """
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    parameters = {name: p.detach() for name, p in model.named_parameters() if id(p) in trained}
    layers = {name: [adapter.out_features, adapter.in_features] for name, adapter in variant.adapters.items()}
    return {"parameters": parameters, "variant": variant.state_dict(), "layers": layers}


def restore_weights(model: nn.Module, variant: Variant, state: Mapping[str, Any]) -> None:
    """Restore the result of `weights`; the variant first, because it may resize parameters."""
    variant.load_state_dict(state["variant"])
    _copy_parameters(model, state["parameters"])


def start_from(model: nn.Module, variant: Variant, state: Mapping[str, Any], left_out: Sequence[str] = ()) -> None:
    """Start a new run from the `weights` of a finished one, except the parameters of the modules `left_out`."""
    variant.start_from(state["variant"])
    kept = {name: tensor for name, tensor in state["parameters"].items() if not inside(name, left_out)}
    _copy_parameters(model, kept)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimizer's groups and moments with parameters by name, so that groups may grow."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [
        {name: value for name, value in group.items() if name != "params"}
        | {"parameters": [names[id(parameter)] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    return {"groups": groups, "state": {names[id(p)]: dict(entry) for p, entry in optimizer.state.items()}}


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Restore the result of `optimizer_state`, groups that were added during training included."""
    parameters = dict(model.named_parameters())
    optimizer.param_groups[:] = [
        {"params": [parameters[name] for name in group["parameters"]]}
        | {name: value for name, value in group.items() if name != "parameters"}
        for group in state["groups"]
    ]
    # Adam keeps its step count on the CPU, unless it is fused or capturable.
    counting = [group for group in optimizer.param_groups if group.get("fused") or group.get("capturable")]
    count_on_device = {id(parameter) for group in counting for parameter in group["params"]}
    optimizer.state.clear()
    for name, entry in state["state"].items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            key: value.to(parameter.device)
            if isinstance(value, torch.Tensor) and (key != "step" or id(parameter) in count_on_device)
            else value
            for key, value in entry.items()
        }


def schedule_state(scheduler: torch.optim.lr_scheduler.LRScheduler) -> dict[str, Any]:
    """Return the schedule's counters, and the curves of groups that were added during training."""
    return scheduler.state_dict()


def restore_schedule(scheduler: torch.optim.lr_scheduler.LRScheduler, state: Mapping[str, Any]) -> None:
    """Restore the result of `schedule_state`; call it after `restore_optimizer`."""
    curves = state.get("lr_lambdas", [])
    if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        scheduler.lr_lambdas.extend(OwnWarmup(**curve) for curve in curves[len(scheduler.lr_lambdas) :])
    scheduler.load_state_dict(dict(state))


@torch.no_grad()
def _copy_parameters(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy `tensors` into the parameters of the same names, which must have the same shapes."""
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name not in parameters:
            raise CorruptState(f"the model has no parameter {name!r}")
        if parameters[name].shape != tensor.shape:
            current, saved = tuple(parameters[name].shape), tuple(tensor.shape)
            raise CorruptState(f"{name}: shape {current} in the model, {saved} in the state")
        parameters[name].copy_(tensor)
