"""Quantises the linear layers of a model, and makes them plain again.

quantize(model, "nf4", head, torch.float32)     # every linear layer but the head and the one that makes words
dequantize(model)                               # plain layers again, with the rounded numbers
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from torch import nn

from variants.core import target_modules
from variants.core.quantized import Quantized


def quantize(model: nn.Module, how: str, head: Sequence[str], dtype: torch.dtype) -> None:
    """Replace the linear layers of `model`, whose weights are in full precision, by quantised ones.

    The head, the layer that makes words of a language model's states and layers that share their weight stay. dtype:
    of products. Raises `ValueError` for a model without such layers, and without bitsandbytes.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"quantize: {how}, and bitsandbytes is not here: pip install 'loratory[quantize]'")
    words = target_modules.output_layer(model)
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    layers = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and module is not words
        and owners[id(module.weight)] == 1
        and not target_modules.inside(name, head)
    }
    if not layers:
        kind = type(model).__name__
        raise ValueError(f"quantize: {how}, and {kind} has no layer of torch.nn.Linear outside its head; allowed: null")
    for name, layer in layers.items():
        target_modules.replace(model, name, Quantized(layer, how, dtype))


@torch.no_grad()
def dequantize(model: nn.Module) -> int:
    """Replace quantised layers by plain ones with the same numbers, in their dtype, and return how many there were."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, Quantized)}
    for name, layer in found.items():
        weight = layer.weight
        size, bias = (layer.in_features, layer.out_features), layer.bias
        plain = nn.Linear(*size, bias=bias is not None, device=weight.device, dtype=weight.dtype)
        plain.requires_grad_(False).train(layer.training)
        plain.weight.copy_(weight)
        if bias is not None:
            plain.bias.copy_(bias)
        target_modules.replace(model, name, plain)
    return len(found)


def entries(model: nn.Module) -> int:
    """Return the number of entries of all quantised weights, which are no parameters."""
    return sum(module.entries for module in model.modules() if isinstance(module, Quantized))
