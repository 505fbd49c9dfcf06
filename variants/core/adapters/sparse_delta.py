"""A sparse update: `values` (nnz,) at `indices` (nnz,), never a dense parameter with zeros.

    y = (W + ΔW) x        ΔW[indices] = scale · values, row by row in the matrix (out, in)

Above a base in the values' own precision there is one product, with W + ΔW; above a half-precision base,
where that sum would be rounded away, ΔW x is computed in float32 and added. Values, gradients and
the optimizer's moments have nnz entries; W + ΔW is formed within a forward or a backward pass and not kept between.
The gradient is computed at the entries alone where that is the cheaper way (`variants.core.kernels.sparse`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import structural_rank
from torch import nn
from torch.func import functional_call

from variants.core.adapters.adapter import Adapter
from variants.core.kernels.sparse import Entries, sparse_linear


class _Forward(nn.Module):
    """A layer's forward pass without its hooks, which are the adapter's."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer.forward(x)
        return y


class SparseDelta(Adapter):
    """ΔW with trained `values` at `indices`, which start at zero.

    indices: (nnz,) int64, places in the flattened matrix (out, in). scale: of the values.
    settled: whether the places are chosen. Until then the values stay out of the product, of the gradients and
        of what counts.
    watched: whether `collect` is given the gradient of ΔW as a whole, in every backward pass.
    gradient: (out, in), what `collect` has summed up.
    """

    indices: torch.Tensor

    def __init__(self, base: nn.Module, indices: torch.Tensor, scale: float = 1.0) -> None:
        super().__init__(base)
        self.scale = scale
        self.hold(indices)

    def hold(self, indices: torch.Tensor) -> None:
        """Adds the values; apart from `__init__` for adapters that have more than them."""
        device, dtype = self.weight.device, torch.promote_types(self.weight.dtype, torch.float32)
        self.values = nn.Parameter(torch.zeros(len(indices), device=device, dtype=dtype))
        self.settled, self.watched = True, False
        self.gradient: torch.Tensor | None = None
        self.register_buffer("indices", indices.to(device), persistent=False)
        self.set_indices(indices)

    def set_indices(self, indices: torch.Tensor) -> None:
        """Moves the values, as many as before, to other places."""
        if len(indices) != len(self.values):
            raise ValueError(f"indices: {len(indices)}, allowed: {len(self.values)}, one for each value")
        self.indices = indices.to(self.weight.device)
        self._places: torch.Tensor | None = None  # the same in the layout of the layer's weight
        self._entries: Entries | None = None
        self._rank: int | None = None

    @property
    def _acts(self) -> bool:
        """Whether the forward pass has to do with the entries."""
        return len(self.values) > 0 and (self.settled or self.watched)

    @property
    def _joins(self) -> bool:
        """Whether that is by one product with W + ΔW."""
        return self._acts and self._enabled and not self.merged and self.weight.dtype == self.values.dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self._joins:
            return super().forward(x)
        if self.form.is_product and not self.watched:
            bias, kernel = self.form.layer.bias, self.kernel
            return sparse_linear(x, self.form.matrix, bias, self.values, self.entries, self.scale, kernel)
        return functional_call(_Forward(self.base), {"layer.weight": self.joined()}, (x,))

    @property
    def entries(self) -> Entries:
        """Where the values are, as `sparse_linear` takes it."""
        if self._entries is None:
            self._entries = Entries(self.indices, (self.out_features, self.in_features))
        return self._entries

    def joined(self) -> torch.Tensor:
        """W + ΔW in the layout of the layer's weight."""
        if self._places is None:
            numbers = torch.arange(self.weight.numel(), device=self.weight.device).view_as(self.weight)
            self._places = self.form.as_matrix(numbers).flatten()[self.indices]
        weight = self.weight.flatten().index_add(0, self._places, self._scaled_values()).view_as(self.weight)
        self._watch(weight, lambda gradient: self.collect(self.form.as_matrix(gradient)))
        return weight

    def update(self, x: torch.Tensor) -> torch.Tensor:
        matrix = self.dense()
        self._watch(matrix, self.collect)
        return self.form.project(x.to(matrix.dtype) if x.is_floating_point() else x, matrix)

    def _watch(self, tensor: torch.Tensor, collect: Callable[[torch.Tensor], None]) -> None:
        if self.watched and torch.is_grad_enabled():
            # Without values in it, as before they settle, the tensor would want no gradient.
            tensor.requires_grad_().register_hook(collect)

    def collect(self, gradient: torch.Tensor) -> None:
        """Takes in the gradient (out, in) of one use of the layer in one batch: a step may have several."""
        self.gradient = gradient if self.gradient is None else self.gradient + gradient

    def _scaled_values(self) -> torch.Tensor:
        return (self.values if self.settled else self.values.detach()) * self.scale

    def dense(self) -> torch.Tensor:
        """The entries as a matrix (out, in)."""
        flat = self.values.new_zeros(self.out_features * self.in_features)
        return flat.index_add(0, self.indices, self._scaled_values()).view(self.out_features, self.in_features)

    def delta(self) -> torch.Tensor:
        return self.dense()

    @property
    def is_empty(self) -> bool:
        return not self._acts

    def rank_source(self) -> torch.Tensor | None:
        """The indices, until their rank has been computed."""
        return self.indices if self.settled and self._rank is None else None

    def rank_from(self, source: np.ndarray) -> int:
        return self.structural_rank(source)

    @property
    def rank(self) -> int:
        return self.structural_rank()

    def structural_rank(self, indices: np.ndarray | None = None) -> int:
        """The rank of a matrix with generic values at the indices. indices: these in host memory, if they are there."""
        if not self.settled:
            return 0
        if self._rank is None:
            found = self.indices.cpu().numpy() if indices is None else indices
            at = found // self.in_features, found % self.in_features
            pattern = coo_matrix((np.ones(len(found)), at), shape=(self.out_features, self.in_features))
            self._rank = int(structural_rank(pattern.tocsr()))
        return self._rank

    def closed_form(self) -> int:
        return len(self.values)

    def effective_parameters(self) -> int:
        return len(self.values) if self.settled else 0

    def places_taken(self) -> tuple[int, int]:
        return len(self.values) if self.settled else 0, self.out_features * self.in_features

    def extra_repr(self) -> str:
        return f"entries={len(self.values)} of {self.out_features * self.in_features}, scale={self.scale:g}"


def largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Places (count,) of the largest of `scores` (flattened), in rising order. Ties go to the first."""
    return largest_in_rows(scores.detach().flatten()[None], count)[0]


def largest_in_rows(scores: torch.Tensor, count: int) -> torch.Tensor:
    """`largest` of each row of `scores` (k, n): (k, count), or (k, n) where there are fewer."""
    rows, size = scores.shape
    if not 0 < count < size:
        return torch.arange(min(count, size), device=scores.device).expand(rows, -1)
    # Not a sort of all, which takes five times as long where masks move every few steps.
    least = scores.topk(count, sorted=False).values.amin(1, keepdim=True)
    above, ties = scores > least, scores == least
    chosen = above | (ties & (ties.cumsum(1) <= count - above.sum(1, keepdim=True)))
    return chosen.nonzero_static(size=rows * count)[:, 1].contiguous().view(rows, count)


def largest_of_groups(groups: Sequence[Sequence[torch.Tensor]], counts: Sequence[int]) -> list[list[torch.Tensor]]:
    """Of every group of scores (n_i,) the `counts[group]` largest, as places in each of its vectors.

    Groups of a single vector are computed together where size and count are the same. How many places of a group of
    several fall into each of its vectors stands on the device, and is read for all groups in one transfer.
    """
    together = [torch.cat(list(group)) for group in groups]
    alike: dict[tuple[int, int], list[int]] = {}
    for i, (vector, count) in enumerate(zip(together, counts, strict=True)):
        alike.setdefault((len(vector), count), []).append(i)
    places: dict[int, torch.Tensor] = {}
    for (_, count), members in alike.items():
        places |= zip(members, largest_in_rows(torch.stack([together[i] for i in members]), count), strict=True)
    inner = {i: [0, *itertools.accumulate(map(len, group))] for i, group in enumerate(groups)}
    several = [i for i, group in enumerate(groups) if len(group) > 1]
    bounds = {i: [0, len(places[i])] for i in inner}
    if several:
        ends = [torch.searchsorted(places[i], torch.tensor(inner[i], device=places[i].device)) for i in several]
        numbers = iter(torch.cat(ends).tolist())
        bounds |= {i: [next(numbers) for _ in inner[i]] for i in several}
    return [
        [
            places[i][low:high] - start if start else places[i][low:high]
            for low, high, start in zip(bounds[i], bounds[i][1:], inner[i], strict=False)
        ]
        for i in range(len(groups))
    ]


def check_finite(numbers: Mapping[str, torch.Tensor], message: str) -> None:
    """Raises `ValueError` where one of `numbers` is not finite: `message`, with its name in place of {}.

    One reading for all of them: for the steps in which what they say is used.
    """
    filled = {name: tensor for name, tensor in numbers.items() if tensor.numel()}
    if not filled:
        return
    sizes = torch.stack(torch._foreach_norm(list(filled.values()), torch.inf))
    for name, size in zip(filled, sizes.tolist(), strict=True):
        if not math.isfinite(size):
            raise ValueError(message.format(name))
