"""The kinds of layer that can be adapted, with one interface: a matrix (out, in) applied to an input.

| layer | weight | in | out | A x | B h |
|---|---|---|---|---|---|
| `nn.Linear`, `Quantized` | (out, in) | features | features | linear | linear |
| transformers' `Conv1D` | (in, out) | features | features | linear | linear |
| `nn.Conv1d`, `nn.Conv2d` | (out, channels, …) | channels · kernel | channels | convolution | convolution of size 1 |
| `nn.Embedding` | (in, out) | rows | features | lookup | linear |

A low-rank update does not form the matrix: `project` applies A (r, in), `expand` applies B (out, r).

In a convolution with g groups `channels` are those of one group. Its matrix has a row for each filter, whatever its
group, and A x is made in every group of its own channels: r · g features, of which a filter uses the r of its group.
So the update of a depthwise convolution with k × k kernels has rank k² at most.

A layer whose module is never called can't be adapted: `nn.MultiheadAttention` reads the weight of its `out_proj`
(`variants.core.attention` makes layers of it). Nor can one whose weight is computed from others
(`torch.nn.utils.parametrize`), in which a merged update would be lost.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.grad import conv1d_weight, conv2d_weight
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from variants.core.quantized import Quantized

# The attributes in which a module keeps its hooks.
HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
)


class LayerKind:
    """How a layer applies its matrix. `kind_of(layer)` returns the right subclass."""

    takes_dropout = True
    is_product = True  # whether the layer is x Wᵀ + b for rows x, and nothing else; and holds W as it is

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    @property
    def matrix(self) -> torch.Tensor:
        """The layer's weight as (out, in), a view if the layout allows it."""
        return self.as_matrix(self.layer.weight)

    def as_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a tensor in the layout of the layer's weight as (out, in)."""
        return weight

    def as_weight(self, matrix: torch.Tensor) -> torch.Tensor:
        """Return a matrix (out, in) in the layout of the layer's weight."""
        return matrix

    def put(self, weight: torch.Tensor) -> None:
        """Replace the values of the layer's weight, rounded to its dtype."""
        self.layer.weight.copy_(weight)

    def put_back(self, original: torch.Tensor) -> None:
        """Undo `put`. original: the weight before it."""
        self.put(original)

    def forward_with(self, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output with another weight of the same shape, without running its hooks."""
        y: torch.Tensor = functional_call(_Forward(self.layer), {"layer.weight": weight}, (x,))
        return y

    def project(self, x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """Apply A (r, in) to the layer's input: r features instead of `out`."""
        return F.linear(x, a)

    def expand(self, h: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Apply B (out, r) to the result of `project`: the shape of the layer's output."""
        return F.linear(h, b)

    def apply(self, x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        """Apply a matrix (out, in) as the layer applies its own, without a bias."""
        return self.project(x, matrix)

    def over_output(self, values: torch.Tensor) -> torch.Tensor:
        """Shape one value per feature so that it broadcasts over the output."""
        return values

    def gradient(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Return ∂L/∂W as (out, in), from the layer's input and the gradient of its output."""
        return output.flatten(0, -2).T @ x.flatten(0, -2)

    def over_places(self, output: torch.Tensor) -> torch.Tensor:
        """Return the sums (out,) of the output's gradient over rows and places: the gradient of a bias."""
        return output.flatten(0, -2).sum(0)


class _Forward(nn.Module):
    """A layer's forward pass without its hooks, which the adapter runs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer.forward(x)
        return y


class _Quantized(LayerKind):
    is_product = False  # its weight is made anew for each product

    def put(self, weight: torch.Tensor) -> None:
        self.layer.dense = weight.to(self.layer.dtype)

    def put_back(self, original: torch.Tensor) -> None:
        self.layer.dense = None

    def forward_with(self, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weight, self.layer.bias)


class _Conv1D(LayerKind):
    def as_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.T

    def as_weight(self, matrix: torch.Tensor) -> torch.Tensor:
        return matrix.T


class _Embedding(LayerKind):
    takes_dropout = False  # its input is an index
    is_product = False

    def as_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.T

    def as_weight(self, matrix: torch.Tensor) -> torch.Tensor:
        return matrix.T

    def project(self, x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return F.embedding(x, a.T)

    def gradient(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        rows = output.new_zeros(self.matrix.shape[1], self.matrix.shape[0])
        return rows.index_add_(0, x.flatten(), output.flatten(0, -2)).T


class _Convolution(LayerKind):
    is_product = False

    def __init__(self, layer: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__(layer)
        one = isinstance(layer, nn.Conv1d)
        self._convolve: Any = F.conv1d if one else F.conv2d
        self._of_weight: Any = conv1d_weight if one else conv2d_weight
        self._places = (None,) * (layer.weight.ndim - 2)  # of a kernel

    def as_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.flatten(1)

    def as_weight(self, matrix: torch.Tensor) -> torch.Tensor:
        return matrix.reshape(self.layer.weight.shape)

    def apply(self, x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        layer = self.layer
        x, padding = self._padded(x) if layer.padding_mode != "zeros" else (x, layer.padding)
        kernels = matrix.reshape(-1, *layer.weight.shape[1:])
        found: torch.Tensor = self._convolve(x, kernels, None, layer.stride, padding, layer.dilation, layer.groups)
        return found

    def project(self, x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return self.apply(x, a.repeat(self.layer.groups, 1) if self.layer.groups > 1 else a)

    def expand(self, h: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self._convolve(h, b[(..., *self._places)], groups=self.layer.groups)
        return found

    def over_output(self, values: torch.Tensor) -> torch.Tensor:
        return values[(..., *self._places)]

    def gradient(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        layer, padding = self.layer, self.layer.padding
        if x.ndim == len(self._places) + 1:  # one row without a dimension for rows
            x, output = x[None], output[None]
        if layer.padding_mode != "zeros" or isinstance(padding, str):
            x, padding = self._padded(x)
        shape, how = layer.weight.shape, (layer.stride, padding, layer.dilation, layer.groups)
        found: torch.Tensor = self._of_weight(x, shape, output, *how)
        return found.flatten(1)

    def _padded(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
        """The input with what the layer puts around it, and the padding that is left to do: none."""
        mode = "constant" if self.layer.padding_mode == "zeros" else self.layer.padding_mode
        return F.pad(x, self.layer._reversed_padding_repeated_twice, mode=mode), 0

    def over_places(self, output: torch.Tensor) -> torch.Tensor:
        places = tuple(range(-len(self._places), 0))
        return output.sum(places if output.ndim == len(places) + 1 else (0, *places))


def matrix(layer: nn.Module) -> torch.Tensor:
    """Return the weight (out, in) of a layer that can be adapted."""
    kind = kind_of(layer)
    assert kind is not None, f"{type(layer).__name__} is not a layer that target_modules.select returns"
    return kind.matrix


def size(layer: nn.Module) -> tuple[int, int]:
    """Return (out, in) of a layer that can be adapted."""
    out_features, in_features = matrix(layer).shape
    return out_features, in_features


def takes_dropout(layer: nn.Module) -> bool:
    """Whether dropout can act on the layer's input."""
    kind = kind_of(layer)
    return kind is not None and kind.takes_dropout


def is_linear(layer: nn.Module) -> bool:
    """Whether "all-linear" includes the layer: features in, features out."""
    kind = kind_of(layer)
    return type(kind) in (LayerKind, _Conv1D, _Quantized)


ALLOWED = "Linear, Conv1D, Conv1d, Conv2d, Embedding"


def kind_of(layer: nn.Module) -> LayerKind | None:
    """Return the kind of a layer, or None if it can't be adapted."""
    if isinstance(layer, NonDynamicallyQuantizableLinear) or parametrize.is_parametrized(layer):
        return None
    if isinstance(layer, nn.Linear):
        return LayerKind(layer)
    if isinstance(layer, Quantized):
        return _Quantized(layer)
    if isinstance(layer, nn.Embedding):
        # With max_norm the lookup rewrites its own weight, which must stay frozen.
        return _Embedding(layer) if layer.max_norm is None else None
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return _Convolution(layer)
    # transformers' class, recognised by its name and shape so that transformers need not be imported.
    if type(layer).__name__ == "Conv1D" and hasattr(layer, "nf") and layer.weight.ndim == 2:
        return _Conv1D(layer)
    return None
