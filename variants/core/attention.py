"""torch's `nn.MultiheadAttention` with its four linear maps as layers, which adapters can wrap.

`nn.MultiheadAttention` calls none of its layers: it hands their weights to a function, the one of queries, keys and
values as one matrix, so that an adapter around one of them would change nothing. `open_up` replaces it by
`OpenAttention`, with the layers `q_proj`, `k_proj`, `v_proj` and `out_proj`; `close` puts torch's module back, with the
weights that the layers have then under their original names.

Left as they are: subclasses, and modules whose weights are shared, or computed from others (`weight_norm`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from variants.core.layers import HOOKS

INPUTS = ("q_proj", "k_proj", "v_proj")
LAYERS = (*INPUTS, "out_proj")
_SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
EXTRA = ("bias_k", "bias_v")  # a learned key and value behind those of the input


class OpenAttention(nn.Module):
    """Computes what `attention` does, from the same arguments.

    All layers see (rows, places, features). Torch's encoder layer has a path that reads weights and calls no layer;
    `in_proj_bias` is None to keep it off.
    """

    in_proj_bias = None
    _qkv_same_embed_dim = False
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    out_proj: nn.Module
    bias_k: torch.Tensor | None
    bias_v: torch.Tensor | None

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.embed_dim, self.kdim, self.vdim = attention.embed_dim, attention.kdim, attention.vdim
        self.dropout, self.batch_first = attention.dropout, attention.batch_first
        self.add_zero_attn = attention.add_zero_attn
        biases = [None] * 3 if attention.in_proj_bias is None else attention.in_proj_bias.detach().chunk(3)
        for name, weight, bias in zip(INPUTS, _weights(attention), biases, strict=True):
            setattr(self, name, _linear(weight, bias))
        of_output = attention.out_proj
        self.out_proj = _linear(of_output.weight.detach(), None if of_output.bias is None else of_output.bias.detach())
        for name in EXTRA:
            self.register_parameter(name, getattr(attention, name))
        self.__dict__.update({name: attention.__dict__[name] for name in HOOKS})
        self.train(attention.training)
        # Without its weights; no submodule, so that it has no part in `parameters` and the like.
        self.__dict__["_closed"] = attention
        for name in ("in_proj_weight", "in_proj_bias", *_SEPARATE, *EXTRA):
            setattr(attention, name, None)
        of_output.weight = of_output.bias = None  # type: ignore[assignment]

    def closed(self) -> nn.MultiheadAttention:
        """Return torch's module with the weights of the layers, which must be plain ones; `self` is of no use then."""
        attention: nn.MultiheadAttention = self.__dict__["_closed"]
        inputs: list[Any] = [getattr(self, name) for name in INPUTS]
        trained = any(parameter.requires_grad for parameter in self.parameters())
        weights = [layer.weight.detach() for layer in inputs]
        names = _names(attention)
        for name, weight in zip(names, weights if len(names) == 3 else [torch.cat(weights)], strict=True):
            setattr(attention, name, nn.Parameter(weight, trained))
        if inputs[0].bias is not None:
            attention.in_proj_bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in inputs]), trained)
        for name in EXTRA:
            setattr(attention, name, getattr(self, name))
        of_output: Any = self.out_proj
        attention.out_proj.weight, attention.out_proj.bias = of_output.weight, of_output.bias
        return attention.train(self.training)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The arguments of `nn.MultiheadAttention.forward`; its output, and the weights or None."""
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal without attn_mask, which torch's attention needs beside it")
        alone, at = query.ndim == 2, 0 if self.batch_first else 1  # without a dimension for rows, and its place
        if alone:
            query, key, value = (x.unsqueeze(at) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        causal = is_causal and key_padding_mask is None and not need_weights  # torch's own reading of the hint
        mask = _mask(q, k, None if causal else attn_mask, key_padding_mask, self.num_heads)
        k, v, mask = self._with_extra_places(k, v, mask)
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        p = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * math.sqrt(1.0 / self.head_dim)) @ k.transpose(-2, -1)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), p)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, p, causal)
        y = self.out_proj(mixed.transpose(1, 2).flatten(2))
        y = y if self.batch_first else y.transpose(0, 1)
        if alone:
            y, weights = y.squeeze(at), None if weights is None else weights.squeeze(0)
        return y, weights

    def _with_extra_places(
        self, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Append the learned place and the one of zeros to keys and values (rows, places, …); no mask hides them."""
        bias_k, bias_v = self.bias_k, self.bias_v
        further = [] if bias_k is None or bias_v is None else [(bias_k, bias_v)]
        further += [(k.new_zeros(1, 1, k.shape[-1]), v.new_zeros(1, 1, v.shape[-1]))] if self.add_zero_attn else []
        for one, other in further:
            k, v = (torch.cat([x, more.expand(len(x), 1, -1)], 1) for x, more in ((k, one), (v, other)))
        return k, v, None if mask is None else F.pad(mask, (0, len(further)))


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of `model` by name as they would be after `open_up` of all; new ones have no weights."""
    found: dict[str, nn.Module] = {}
    closed = openable(model)
    for name, module in model.named_modules():
        if name.endswith(".out_proj") and name.removesuffix(".out_proj") in closed:
            continue
        found[name] = module
        if (attention := closed.get(name)) is not None:
            biases = [attention.in_proj_bias is not None] * 3 + [attention.out_proj.bias is not None]
            shapes = [weight.shape for weight in (*_weights(attention), attention.out_proj.weight)]
            for part, (rows, columns), bias in zip(LAYERS, shapes, biases, strict=True):
                dtype = attention.out_proj.weight.dtype
                found[f"{name}.{part}"] = nn.Linear(columns, rows, bias=bias, device="meta", dtype=dtype)
    return found


def open_up(model: nn.Module, names: Iterable[str]) -> None:
    """Open the attentions of `model` that the layers `names` are in."""
    wanted = {name.rpartition(".")[0] for name in names}
    for name, attention in openable(model).items():
        if name in wanted:
            model.set_submodule(name, OpenAttention(attention))


def close(model: nn.Module) -> None:
    """Undo `open_up`, with the weights as they are."""
    for name, module in list(model.named_modules()):
        if isinstance(module, OpenAttention):
            model.set_submodule(name, module.closed())


def openable(model: nn.Module) -> dict[str, nn.MultiheadAttention]:
    """Return the attentions of `model`, by name, that can be opened."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    places: dict[int, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        places[id(module)] = places.get(id(module), 0) + 1
    return {
        name: module
        for name, module in model.named_modules()
        if name
        and type(module) is nn.MultiheadAttention
        and type(module.out_proj) is NonDynamicallyQuantizableLinear
        and places[id(module)] == 1
        and all(module._parameters.get(name) is not None for name in _names(module))
        and all(owners[id(parameter)] == 1 for parameter in module.parameters())
    }


def _names(attention: nn.MultiheadAttention) -> tuple[str, ...]:
    return ("in_proj_weight",) if attention._qkv_same_embed_dim else _SEPARATE


def _weights(attention: nn.MultiheadAttention) -> list[torch.Tensor]:
    """Return the weights (embed_dim, …) of queries, keys and values."""
    held: list[torch.Tensor] = [getattr(attention, name) for name in _names(attention)]
    return held if len(held) == 3 else list(held[0].detach().chunk(3))


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """Return a frozen layer with copies of `weight` (out, in) and `bias`, so that what held them can go."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta").requires_grad_(False)
    layer.weight = nn.Parameter(weight.detach().clone(), False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), False)
    return layer


def _mask(
    q: torch.Tensor, k: torch.Tensor, of_pairs: torch.Tensor | None, of_keys: torch.Tensor | None, heads: int
) -> torch.Tensor | None:
    """Return what is added to the scores (rows or 1, heads or 1, queries or 1, keys), or None.

    of_pairs: (queries, keys) or (rows · heads, queries, keys). of_keys: (rows, keys). True hides, or they are added.
    """
    pairs = None if of_pairs is None else _added(of_pairs, q.dtype)
    if pairs is not None:
        pairs = pairs[None, None] if pairs.ndim == 2 else pairs.unflatten(0, (len(q), heads))
        if pairs.shape[-2:] != (q.shape[1], k.shape[1]):
            raise RuntimeError(f"attn_mask: {tuple(pairs.shape[-2:])}, allowed: {(q.shape[1], k.shape[1])}")
    keys = None if of_keys is None else _added(of_keys, q.dtype)[:, None, None]
    return keys if pairs is None else pairs if keys is None else pairs + keys


def _added(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))
