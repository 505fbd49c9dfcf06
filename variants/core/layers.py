"""The kinds of layer that can be adapted, seen as one thing: a matrix (out, in) applied to something.

| layer | weight | in | out | A x | B h |
|---|---|---|---|---|---|
| `nn.Linear` | (out, in) | features | features | linear | linear |
| transformers' `Conv1D` | (in, out) | features | features | linear | linear |
| `nn.Conv2d` | (out, channels, kh, kw) | channels · kh · kw | channels | convolution | 1×1 convolution |
| `nn.Embedding` | (in, out) | rows | features | lookup | linear |

A low-rank update never forms the matrix: `project` applies A (r, in), `expand` applies B (out, r).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.grad import conv2d_weight


class Form:
    """How a layer applies its matrix. `of(layer)` finds the right one."""

    takes_dropout = True
    is_product = True  # whether the layer is x Wᵀ + b for rows x, and nothing else

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    @property
    def matrix(self) -> torch.Tensor:
        """The layer's weight as (out, in), a view where the layout allows one."""
        return self.as_matrix(self.layer.weight)

    def as_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """A tensor in the layout of the layer's weight as (out, in)."""
        return weight

    def as_weight(self, matrix: torch.Tensor) -> torch.Tensor:
        """A matrix (out, in) in the layout of the layer's weight."""
        return matrix

    def project(self, x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """A (r, in) applied to the layer's input: r features where the layer has `out`."""
        return F.linear(x, a)

    def expand(self, h: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """B (out, r) applied to what `project` gave: what the layer's output is added to."""
        return F.linear(h, b)

    def over_output(self, values: torch.Tensor) -> torch.Tensor:
        """One number for each feature of the output, or of what `project` gives, shaped to be broadcast over it."""
        return values

    def gradient(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """∂L/∂W as (out, in), from the layer's input and the gradient of its output."""
        return output.flatten(0, -2).T @ x.flatten(0, -2)


class _Conv1D(Form):
    def as_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.T

    def as_weight(self, matrix: torch.Tensor) -> torch.Tensor:
        return matrix.T


class _Embedding(Form):
    takes_dropout = False  # its input is a row number
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


class _Conv2d(Form):
    is_product = False

    def as_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.flatten(1)

    def as_weight(self, matrix: torch.Tensor) -> torch.Tensor:
        return matrix.reshape(self.layer.weight.shape)

    def project(self, x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        layer = self.layer
        kernels = a.reshape(-1, *layer.weight.shape[1:])
        if layer.padding_mode != "zeros":
            x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
            return F.conv2d(x, kernels, None, layer.stride, 0, layer.dilation)
        return F.conv2d(x, kernels, None, layer.stride, layer.padding, layer.dilation)

    def expand(self, h: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.conv2d(h, b[:, :, None, None])

    def over_output(self, values: torch.Tensor) -> torch.Tensor:
        return values[:, None, None]

    def gradient(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        layer, padding = self.layer, self.layer.padding
        if layer.padding_mode != "zeros" or isinstance(padding, str):
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode), 0
        shape = layer.weight.shape
        return conv2d_weight(x, shape, output, layer.stride, padding, layer.dilation).flatten(1)


def matrix(layer: nn.Module) -> torch.Tensor:
    """The weight (out, in) of a layer that can be adapted."""
    form = of(layer)
    assert form is not None, f"{type(layer).__name__} is no layer that targets.select gives"
    return form.matrix


def size(layer: nn.Module) -> tuple[int, int]:
    """(out, in) of a layer that can be adapted."""
    out_features, in_features = matrix(layer).shape
    return out_features, in_features


def takes_dropout(layer: nn.Module) -> bool:
    """Whether the input of a layer that can be adapted is made of numbers that can be dropped."""
    form = of(layer)
    return form is not None and form.takes_dropout


def is_linear(layer: nn.Module) -> bool:
    """Whether "all-linear" means it: features in, features out."""
    form = of(layer)
    return type(form) in (Form, _Conv1D)


ALLOWED = "Linear, Conv1D, Conv2d, Embedding"


def of(layer: nn.Module) -> Form | None:
    """The form of a layer, or None for a kind that can't be adapted."""
    if isinstance(layer, nn.Linear):
        return Form(layer)
    if isinstance(layer, nn.Embedding):
        # With a norm bound the lookup rewrites its own weight; a frozen matrix is what we need.
        return _Embedding(layer) if layer.max_norm is None else None
    if isinstance(layer, nn.Conv2d):
        return _Conv2d(layer) if layer.groups == 1 else None
    # transformers' own class, known by its name and shape so that transformers is not imported.
    if type(layer).__name__ == "Conv1D" and hasattr(layer, "nf") and layer.weight.ndim == 2:
        return _Conv1D(layer)
    return None
