"""A sparse update: `values` (nnz,) at `indices` (nnz,), not a dense parameter with zeros.

    y = (W + ΔW) x        ΔW[indices] = scale · values, row by row in the matrix (out, in)

If the base has the values' precision, the layer computes one product with W + ΔW. Above a half-precision base, where
that sum would lose ΔW to rounding, ΔW x is computed in float32 and added. Values, gradients and the optimizer's moments
have nnz entries; W + ΔW is formed within a forward or backward pass and not kept in between. The gradient is computed
only at the entries if that is cheaper (`variants.core.kernels.sparse`).
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

from variants.core.adapters.adapter import Adapter
from variants.core.kernels.sparse import Entries, sparse_linear


class SparseDelta(Adapter):
    """ΔW with trained `values` at `indices`, which start at zero.

    indices: (nnz,) int64, in the flattened matrix (out, in). scale: factor of the values.
    settled: whether the indices are chosen. Until then the values take no part in the product, in gradients and in
        counts.
    watched: whether every backward pass calls `collect` with the dense gradient of ΔW.
    gradient: (out, in), the sum of these gradients.
    """

    indices: torch.Tensor

    def __init__(self, base: nn.Module, indices: torch.Tensor, scale: float = 1.0) -> None:
        super().__init__(base)
        self.scale = scale
        self.hold(indices)

    def hold(self, indices: torch.Tensor) -> None:
        """Create values and indices; separate from `__init__` for adapters that also have factors."""
        device, dtype = self.weight.device, torch.promote_types(self.weight.dtype, torch.float32)
        self.values = nn.Parameter(torch.zeros(len(indices), device=device, dtype=dtype))
        self.settled, self.watched = True, False
        self.gradient: torch.Tensor | None = None
        self.register_buffer("indices", indices.to(device), persistent=False)
        self.set_indices(indices)

    def set_indices(self, indices: torch.Tensor) -> None:
        """Move the values to other indices, as many as before."""
        if len(indices) != len(self.values):
            raise ValueError(f"indices: {len(indices)}, allowed: {len(self.values)}, one for each value")
        self.indices = indices.to(self.weight.device)
        self._weight_indices: torch.Tensor | None = None  # the same in the layout of the layer's weight
        self._entries: Entries | None = None
        self._rank: int | None = None

    @property
    def _acts(self) -> bool:
        """Whether the forward pass uses the entries."""
        return len(self.values) > 0 and (self.settled or self.watched)

    @property
    def _uses_merged_weight(self) -> bool:
        """Whether the forward pass is one product with W + ΔW."""
        return self._acts and self._enabled and not self.merged and self.weight.dtype == self.values.dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self._uses_merged_weight:
            return super().forward(x)
        if self.layer_kind.is_product and not self.watched:
            bias, kernel = self.layer_kind.layer.bias, self.kernel
            return sparse_linear(x, self.layer_kind.matrix, bias, self.acting(), self.entries, self.scale, kernel)
        return self.layer_kind.forward_with(self.merged_weight(), x)

    @property
    def entries(self) -> Entries:
        """The indices in the form that `sparse_linear` takes."""
        if self._entries is None:
            self._entries = Entries(self.indices, (self.out_features, self.in_features))
        return self._entries

    def merged_weight(self) -> torch.Tensor:
        """Return W + ΔW in the layout of the layer's weight."""
        if self._weight_indices is None:
            numbers = torch.arange(self.weight.numel(), device=self.weight.device).view_as(self.weight)
            self._weight_indices = self.layer_kind.as_matrix(numbers).flatten()[self.indices]
        weight = self.weight.flatten().index_add(0, self._weight_indices, self._scaled_values()).view_as(self.weight)
        self._watch(weight, lambda gradient: self.collect(self.layer_kind.as_matrix(gradient)))
        return weight

    def update(self, x: torch.Tensor) -> torch.Tensor:
        matrix = self.dense()
        self._watch(matrix, self.collect)
        return self.layer_kind.apply(x.to(matrix.dtype) if x.is_floating_point() else x, matrix)

    def _watch(self, tensor: torch.Tensor, collect: Callable[[torch.Tensor], None]) -> None:
        if self.watched and torch.is_grad_enabled():
            # Before the indices are settled the tensor would not require a gradient by itself.
            tensor.requires_grad_().register_hook(collect)

    def collect(self, gradient: torch.Tensor) -> None:
        """Add the gradient (out, in) of one use of the layer in one batch; a step may have several."""
        self.gradient = gradient if self.gradient is None else self.gradient + gradient

    def acting(self) -> torch.Tensor:
        """Return the values (nnz,) as they act now. A method that gates them overrides this."""
        return self.values

    def _scaled_values(self) -> torch.Tensor:
        return (self.acting() if self.settled else self.values.detach()) * self.scale

    def dense(self) -> torch.Tensor:
        """Return the entries as a matrix (out, in)."""
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
        """Return the rank of a matrix with generic values at the indices.

        indices: the adapter's indices in host memory, if they were transferred already.
        """
        if not self.settled:
            return 0
        if self._rank is None:
            indices = self.indices.cpu().numpy() if indices is None else indices
            if len(indices) == self.out_features * self.in_features:
                self._rank = min(self.out_features, self.in_features)
                return self._rank
            at = indices // self.in_features, indices % self.in_features
            pattern = coo_matrix((np.ones(len(indices)), at), shape=(self.out_features, self.in_features))
            self._rank = int(structural_rank(pattern.tocsr()))
        return self._rank

    def closed_form(self) -> int:
        return len(self.values)

    def effective_parameters(self) -> int:
        return len(self.values) if self.settled else 0

    def entry_counts(self) -> tuple[int, int]:
        return len(self.values) if self.settled else 0, self.out_features * self.in_features

    def extra_repr(self) -> str:
        return f"entries={len(self.values)} of {self.out_features * self.in_features}, scale={self.scale:g}"


def largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return the indices (count,) of the largest of `scores` (flattened), ascending. Ties go to the first."""
    return largest_in_rows(scores.detach().flatten()[None], count)[0]


def largest_in_rows(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return `largest` of each row of `scores` (k, n): (k, count), or (k, n) if n is smaller."""
    rows, size = scores.shape
    if not 0 < count < size:
        return torch.arange(min(count, size), device=scores.device).expand(rows, -1)
    # Not a full sort, which takes five times as long; masks may change every few steps.
    least = scores.topk(count, sorted=False).values.amin(1, keepdim=True)
    above, ties = scores > least, scores == least
    chosen = above | (ties & (ties.cumsum(1) <= count - above.sum(1, keepdim=True)))
    if _by_numpy(scores):
        return torch.from_numpy(np.nonzero(chosen.numpy().ravel())[0]).view(rows, count).remainder_(size)
    return chosen.nonzero_static(size=rows * count)[:, 1].contiguous().view(rows, count)


def _by_numpy(scores: torch.Tensor) -> bool:
    """Whether NumPy finds the places of what is chosen: on a CPU it takes a twentieth of torch's time."""
    return scores.device.type == "cpu"


def largest_of_groups(groups: Sequence[Sequence[torch.Tensor]], counts: Sequence[int]) -> list[list[torch.Tensor]]:
    """Return, for every group of score vectors (n_i,), where its `counts[group]` largest are: indices into each vector.

    Groups with the same size and count are computed together. How many indices of a group fall into each of its vectors
    is known on the device only, and is read for all groups in one transfer.
    """
    together = [torch.cat(list(group)) for group in groups]
    alike: dict[tuple[int, int], list[int]] = {}
    for i, (vector, count) in enumerate(zip(together, counts, strict=True)):
        alike.setdefault((len(vector), count), []).append(i)
    indices: dict[int, torch.Tensor] = {}
    for (_, count), members in alike.items():
        indices |= zip(members, largest_in_rows(torch.stack([together[i] for i in members]), count), strict=True)
    inner = {i: [0, *itertools.accumulate(map(len, group))] for i, group in enumerate(groups)}
    several = [i for i, group in enumerate(groups) if len(group) > 1]
    bounds = {i: [0, len(indices[i])] for i in inner}
    if several:
        ends = [torch.searchsorted(indices[i], torch.tensor(inner[i], device=indices[i].device)) for i in several]
        numbers = iter(torch.cat(ends).tolist())
        bounds |= {i: [next(numbers) for _ in inner[i]] for i in several}
    return [
        [
            indices[i][low:high] - start if start else indices[i][low:high]
            for low, high, start in zip(bounds[i], bounds[i][1:], inner[i], strict=False)
        ]
        for i in range(len(groups))
    ]


def check_finite(numbers: Mapping[str, torch.Tensor], message: str) -> None:
    """Raise `ValueError` if one of `numbers` is not finite: `message` with its name in place of {}.

    It reads one value per tensor in one transfer, so call it only in steps that use the numbers.
    """
    filled = {name: tensor for name, tensor in numbers.items() if tensor.numel()}
    if not filled:
        return
    # Not by the norm of order ∞, which takes three to eight times as long on a CPU. The maximum propagates NaN. One
    # tensor after the other, because the absolute values are a copy.
    sizes = torch.stack([tensor.abs().amax() for tensor in filled.values()])
    for name, size in zip(filled, sizes.tolist(), strict=True):
        if not math.isfinite(size):
            raise ValueError(message.format(name))
