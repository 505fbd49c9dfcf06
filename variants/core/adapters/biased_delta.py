"""A sparse update of a layer's weight and of its bias: masks that choose among both."""

from __future__ import annotations

import torch
from torch import nn

from variants.core.adapters.sparse_delta import SparseDelta


class BiasedDelta(SparseDelta):
    """ΔW with `values` at `indices`, and Δbias with `bias_values` (n,) at `bias_indices` (n,); all start at zero.

    A layer without a bias has no entries there.
    """

    bias_indices: torch.Tensor

    def __init__(self, base: nn.Module, indices: torch.Tensor, bias_indices: torch.Tensor) -> None:
        super().__init__(base, indices)
        self._bias_before: torch.Tensor | None = None  # the bias before merging
        self.hold_both(indices, bias_indices)

    def hold_both(self, indices: torch.Tensor, bias_indices: torch.Tensor) -> None:
        """Create values at other indices, all zero. Parameters that have the right size stay the same objects."""
        if len(indices) == len(self.values):
            self.set_indices(indices)
        else:
            self.hold(indices)
        old = self._parameters.get("bias_values")
        if old is None or len(old) != len(bias_indices):
            self.bias_values = nn.Parameter(self.values.new_zeros(len(bias_indices)))
        self.register_buffer("bias_indices", bias_indices.to(self.weight.device), persistent=False)

    def bias_delta(self) -> torch.Tensor:
        """Return Δbias (out,)."""
        return self.values.new_zeros(self.out_features).index_add(0, self.bias_indices, self.bias_values)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        if self.merged or not self._enabled or not len(self.bias_values):
            return y
        return y + self.layer_kind.over_output(self.bias_delta()).to(y.dtype)

    @torch.no_grad()
    def merge(self) -> None:
        super().merge()
        if len(self.bias_values):
            bias = self.layer_kind.layer.bias
            self._bias_before = bias.detach().clone()
            bias.copy_(self._bias_before.to(self.values.dtype) + self.bias_delta())

    @torch.no_grad()
    def unmerge(self) -> None:
        super().unmerge()
        if self._bias_before is not None:
            self.layer_kind.layer.bias.copy_(self._bias_before)
            self._bias_before = None

    def beside_delta(self) -> str | None:
        return "a trained bias" if len(self.bias_values) else None

    def closed_form(self) -> int:
        return len(self.values) + len(self.bias_values)

    def effective_parameters(self) -> int:
        return self.closed_form()

    def entry_counts(self) -> tuple[int, int]:
        has_bias = getattr(self.layer_kind.layer, "bias", None) is not None
        size = self.out_features * self.in_features + (self.out_features if has_bias else 0)
        return self.closed_form(), size


def biases(layer: nn.Module, wanted: bool) -> int:
    """Return the number of entries of a layer's bias that may be chosen: 0 unless `wanted`, or without a bias."""
    bias = getattr(layer, "bias", None)
    return 0 if bias is None or not wanted else bias.numel()


__all__ = ["BiasedDelta", "biases"]
