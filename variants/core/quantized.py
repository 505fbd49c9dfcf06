"""A linear layer whose frozen weight is kept in 8 or 4 bits, and is dequantised wherever it is read.

`int8` keeps W (out, in) as whole numbers with a scale for each row, max |w| / 127; `nf4` as 4-bit normal floats with a
scale for each 64 entries (Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023). Both are
bitsandbytes' formats, made on the CPU of float32 weights, so that every device has the same numbers. Products are taken
in the layer's dtype: activations are never quantised, unlike in LLM.int8.

Forward and backward pass dequantise W anew, so that autograd keeps no copy of it.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

HOW = ("int8", "nf4")
BLOCK = 64  # entries of nf4 with one scale

# It warns of a kernel that only its own layers would use, in every process that imports PEFT.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


class Quantized(nn.Module):
    """A frozen linear layer of 8 or 4 bits. how: int8 or nf4. dtype: of its products and of `weight`, as `to` sets it.

    dense: None, or the weight that replaces the packed one, as a merged update makes it.
    """

    packed: torch.Tensor
    scales: torch.Tensor
    dense: torch.Tensor | None
    _like: torch.Tensor

    def __init__(self, layer: nn.Linear, how: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = layer.weight.shape
        self.how = how
        packed, scales = _packed(layer.weight.detach(), how)
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)
        self.register_buffer("dense", None)
        self.register_buffer("_like", torch.empty(0, dtype=dtype, device=packed.device), persistent=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(dtype), requires_grad=False)
        self.train(layer.training)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        exact = self.scales
        super()._apply(fn, recurse)
        if not exact.is_meta:
            self.scales = exact.to(self.scales.device)  # in float32, whatever the model's dtype becomes
        return self

    @property
    def dtype(self) -> torch.dtype:
        return self._like.dtype

    @property
    def entries(self) -> int:
        """The number of entries of W."""
        return self.out_features * self.in_features

    @property
    def weight(self) -> torch.Tensor:
        """W (out, in) in the layer's dtype: made anew, so that writing it changes nothing."""
        if self.dense is not None:
            return self.dense
        return self._unpacked().to(self.dtype)

    def _unpacked(self) -> torch.Tensor:
        shape = (self.out_features, self.in_features)
        if self.packed.is_meta:
            return torch.empty(shape, device="meta")
        from bitsandbytes import functional

        if self.how == "int8":
            return functional.int8_vectorwise_dequant(self.packed, self.scales)
        whole = torch.Size(shape)
        state = functional.QuantState(self.scales, whole, None, BLOCK, "nf4", torch.float32)
        found: torch.Tensor = functional.dequantize_4bit(self.packed, state)
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = _Product.apply(x, self.bias, self)
        return y

    def extra_repr(self) -> str:
        return f"{self.how}, in_features={self.in_features}, out_features={self.out_features}"


class _Product(torch.autograd.Function):
    """x Wᵀ + bias in one operation, as of a plain layer; nothing of W is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bias: torch.Tensor | None, layer: Quantized) -> torch.Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        return F.linear(x, layer.weight, bias)

    @staticmethod
    def backward(ctx: Any, *of_y: torch.Tensor) -> Any:
        (gradient,) = of_y
        of_x = (gradient @ ctx.layer.weight.to(gradient.dtype)).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        of_bias = gradient.flatten(0, -2).sum(0).to(ctx.layer.dtype) if ctx.needs_input_grad[1] else None
        return of_x, of_bias, None


def _packed(weight: torch.Tensor, how: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the packed entries of W (out, in) and their scales."""
    if weight.is_meta:
        if how == "int8":
            return torch.empty(weight.shape, dtype=torch.int8, device="meta"), torch.empty(len(weight), device="meta")
        packed = torch.empty(((weight.numel() + 1) // 2, 1), dtype=torch.uint8, device="meta")
        return packed, torch.empty(-(-weight.numel() // BLOCK), device="meta")
    from bitsandbytes import functional

    whole = weight.float().contiguous()
    if how == "int8":
        packed, scales, _ = functional.int8_vectorwise_quant(whole)
        return packed, scales
    packed, state = functional.quantize_4bit(whole, blocksize=BLOCK, quant_type="nf4")
    return packed, state.absmax
