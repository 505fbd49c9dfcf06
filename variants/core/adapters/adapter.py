"""An adapter: a module around one frozen layer, with a trainable update ΔW of its weight.

Most methods share this structure, with different parts frozen, initialised, pruned or grown:

    ΔW = scale · B · diag(e) · A          A: r×in   e: r   B: out×r

    x ──┬── W (frozen) ─────────────────────┬── y
        └── dropout ── A ── e ── B ── scale ┘

ΔW is a matrix (out, in) for every kind of layer; `variants.core.layers` says how each kind applies it.

| | |
|---|---|
| `update(x)` | ΔW x (in the layer's sense of a product), without forming ΔW |
| `delta()`, `delta_weight()` | ΔW as a matrix (out, in), and in the layout of the layer's weight |
| `factors()` | A, B and the core C as they act now, for ΔW = scale · B C A |
| `as_product()` | A and B with ΔW = B A, for export |
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from variants.core import layers
from variants.core.adapters import resize, svd
from variants.core.kernels import dropout as dropouts
from variants.core.kernels.dropout import Drawn
from variants.core.kernels.low_rank import FUSED, Kernel, low_rank_linear

# In evaluation torch's `nn.TransformerEncoderLayer` would read the weights of its layers and call none of them.
torch.backends.mha.set_fastpath_enabled(False)


class Adapter(nn.Module):
    """Wraps `base`, a frozen layer of a kind that `variants.core.layers` supports, and replaces it in the model.

    Attributes that it does not have are looked up on the layer. It takes over the layer's hooks, which therefore see
    the whole output, ΔW's part included; so `base` is only called through its `forward`.

    A subclass defines `update`, `delta`, `rank` and `closed_form`.
    """

    counts_rank_on_device = False
    kernel: Kernel = FUSED

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        layer_kind = layers.kind_of(base)
        if layer_kind is None:
            raise ValueError(f"targets: {type(base).__name__} can't be adapted, allowed: {layers.ALLOWED}")
        self.base = base.requires_grad_(False)
        self.layer_kind = layer_kind
        self.out_features, self.in_features = layer_kind.matrix.shape
        self._enabled = True
        self._original: torch.Tensor | None = None  # the weight before merging; None while not merged
        # The same objects: a handle on the layer's hook still removes it, and unwrapping need not undo anything.
        self.__dict__.update({name: base.__dict__[name] for name in layers.HOOKS})

    def __getattr__(self, name: str) -> Any:
        """Return what a model reads from the layer besides its weight: bias, stride, padding_idx and the like."""
        # The same lookup as `nn.Module.__getattr__`, but faster, because a step reads many parameters.
        for registry in ("_parameters", "_buffers", "_modules"):
            if name in (members := self.__dict__.get(registry, ())):
                return members[name]
        base = self.__dict__.get("_modules", {}).get("base")
        if base is None or name.startswith("__"):  # Python's own protocols concern the adapter, not the layer
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(base, name)

    @property
    def weight(self) -> torch.Tensor:
        """The base layer's weight, for code that reads a layer's weight, dtype or device."""
        return self.layer_kind.layer.weight

    @weight.setter
    def weight(self, value: torch.Tensor) -> None:
        """For hooks that recompute the weight before each forward pass, as `torch.nn.utils.weight_norm` does."""
        self.layer_kind.layer.weight = value

    @property
    def merged(self) -> bool:
        return self._original is not None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the base layer's output plus ΔW x, in the base's dtype."""
        y = self.base.forward(x)
        if self.merged or not self._enabled or self.is_empty:
            return y
        return y + self.update(x).to(y.dtype)

    @property
    def is_empty(self) -> bool:
        """Whether ΔW has no entries left, so that there is nothing to compute."""
        return False

    def update(self, x: torch.Tensor) -> torch.Tensor:
        """Return ΔW applied to the layer's input, without forming ΔW."""
        raise NotImplementedError(f"{type(self).__name__}.update")

    def delta(self) -> torch.Tensor:
        """Return ΔW as a dense matrix (out, in) in the adapter's dtype, without dropout."""
        raise NotImplementedError(f"{type(self).__name__}.delta")

    def delta_weight(self) -> torch.Tensor:
        """Return ΔW in the layout of the layer's weight."""
        return self.layer_kind.as_weight(self.delta())

    def as_product(self) -> svd.Product:
        """Return A (r, in) and B (out, r) with ΔW = B A up to rounding, for export as a low-rank adapter.

        By default they come from the SVD of ΔW. An adapter with factors returns these, without zero components.
        """
        return svd.of_matrix(self.delta()).product()

    def beside_delta(self) -> str | None:
        """Return what the adapter trains in the layer beside ΔW, in words; None for nothing. No factors have it."""
        return None

    @property
    def rank(self) -> int:
        """The rank of ΔW in use: what its shape and its zeros allow."""
        source = self.rank_source()
        if source is None:
            raise NotImplementedError(f"{type(self).__name__}.rank")
        return self.rank_from(source.detach().cpu().numpy())

    def rank_source(self) -> torch.Tensor | None:
        """The numbers (n,) on the device that `rank` follows from; None if the host knows the rank.

        An adapter that has such numbers defines `rank_from`, so that one transfer serves all layers, and
        `counts_rank_on_device` if they may change in any step and not by decisions of the method alone.
        """
        return None

    def rank_from(self, source: np.ndarray) -> int:
        """The rank that follows from `rank_source` (n,), which is in host memory."""
        raise NotImplementedError(f"{type(self).__name__}.rank_from")

    def closed_form(self) -> int:
        """Return the number of trainable parameters of this adapter, by formula."""
        raise NotImplementedError(f"{type(self).__name__}.closed_form")

    def effective_parameters(self) -> int:
        """Return the number of trainable parameters that still affect ΔW, counted by real shapes."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def effective_from(self, source: np.ndarray) -> int:
        """Return the effective parameters that follow from `rank_source` (n,), which is in host memory."""
        return self.effective_parameters()

    def entry_counts(self) -> tuple[int, int] | None:
        """Return the entries inside the masks of its sparse matrices, and all entries; None without sparse matrices."""
        return None

    @property
    def recomputes(self) -> bool:
        """Whether `Kernel.recompute` saves memory: something kept for the backward pass can be recomputed instead."""
        return False

    def draw(self, x: torch.Tensor, dropout: float) -> Drawn:
        """Draw which entries of x (…, in) dropout drops, in the form that the kernel keeps for the backward pass."""
        return dropouts.draw(x, dropout, seed_alone=self.kernel.recompute)

    @torch.no_grad()
    def merge(self) -> None:
        """Add ΔW to the base weight, rounded once to its dtype; the adapter then adds nothing itself."""
        if self.merged:
            raise RuntimeError("merge: already merged")
        # A copy, because subtracting ΔW would not restore every bit.
        self._original = self.weight.detach().clone()
        delta = self.delta_weight()
        self.layer_kind.put(self._original.to(delta.dtype) + delta)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Restore the base weight bit for bit."""
        if self._original is None:
            raise RuntimeError("unmerge: not merged")
        self.layer_kind.put_back(self._original)
        self._original = None

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """Context in which the layer computes what it did before it was wrapped."""
        was_merged, was_enabled = self.merged, self._enabled
        if was_merged:
            self.unmerge()
        self._enabled = False
        try:
            yield
        finally:
            self._enabled = was_enabled
            if was_merged:
                self.merge()


class Factored(Adapter):
    """ΔW = scale · B C A, computed together with the base layer's product (`variants.core.kernels.low_rank`).

    dropout: fraction of the adapter's input that is zeroed in training.
    A subclass defines `factors`, `rank` and `closed_form`.
    """

    scale: float
    dropout: float = 0.0

    def factors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return A (r, in), B (out, r) and C as they act now; C is diagonal (r,), (r, r), or None for the identity."""
        raise NotImplementedError(f"{type(self).__name__}.factors")

    def set_dropout(self, dropout: float) -> None:
        """Set `dropout`. Raises `ValueError` on a layer whose input can't be dropped."""
        if dropout and not self.layer_kind.takes_dropout:
            kind = type(self.base).__name__
            raise ValueError(f"dropout: {dropout} on a {kind}, allowed: 0; its input is an index")
        self.dropout = dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.layer_kind.is_product or self.merged or not self._enabled or self.is_empty:
            return super().forward(x)
        return self.product(x, self.layer_kind.matrix)

    def product(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return (weight + ΔW) x + bias, for a layer that is a matrix product. weight: (out, in)."""
        a, b, core = self.factors()
        dropout = self.dropout if self.training else 0.0
        return low_rank_linear(x, weight, self.layer_kind.layer.bias, a, b, core, self.scale, dropout, self.kernel)

    @property
    def recomputes(self) -> bool:
        # Dropout's bits; and A x, unless A is frozen: then A x is kept in place of the input.
        return self.dropout > 0 or (self.layer_kind.is_product and self.factors()[0].requires_grad)

    def update(self, x: torch.Tensor) -> torch.Tensor:
        if x.is_floating_point():
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            if self.dropout and self.training:
                x = dropouts.drop(x, self.draw(x, self.dropout))
        return self.apply_factors(x)

    def apply_factors(self, x: torch.Tensor) -> torch.Tensor:
        """Return ΔW x, without dropout."""
        a, b = self._scaled_factors()
        return self.layer_kind.expand(self.layer_kind.project(x, a), b)

    def _scaled_factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A (r, in) and scale · B C (out, r)."""
        a, b, core = self.factors()
        if core is not None:
            b = b * core if core.ndim == 1 else b @ core
        return a, b * self.scale

    def delta(self) -> torch.Tensor:
        a, b = self._scaled_factors()
        return b @ a

    def as_product(self) -> svd.Product:
        return svd.without_zeros(*self._scaled_factors())


class LowRank(Factored):
    """ΔW = scale · B diag(e) A with trained A (r, in), B (out, r) and, if `diagonal`, e (r,).

    rank: number of components. scale: a plain number. dropout: fraction of the adapter's input that is zeroed in
    training. diagonal: whether there is a trained e; otherwise it is all ones.

    A starts kaiming-uniform, B at zero, e at one, so ΔW starts at zero. A method with another start fills them in
    `build`. A, B and e are float32 above a half-precision base.
    """

    def __init__(
        self, base: nn.Module, rank: int, scale: float, dropout: float = 0.0, *, diagonal: bool = False
    ) -> None:
        super().__init__(base)
        self.set_dropout(dropout)
        device, dtype = self.weight.device, torch.promote_types(self.weight.dtype, torch.float32)
        self.A = nn.Parameter(torch.empty((rank, self.in_features), device=device, dtype=dtype))
        self.B = nn.Parameter(torch.zeros((self.out_features, rank), device=device, dtype=dtype))
        self.e = nn.Parameter(torch.ones(rank, device=device, dtype=dtype)) if diagonal else None
        if rank:
            nn.init.kaiming_uniform_(self.A, a=5**0.5)
        self.scale = scale

    def diagonal(self) -> torch.Tensor | None:
        """Return e as it acts now, (r,); None means all ones. A method that masks e overrides this."""
        return self.e

    def factors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        return self.A, self.B, self.diagonal()

    @property
    def is_empty(self) -> bool:
        return self.A.shape[0] == 0

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    def closed_form(self) -> int:
        return self.rank * self.cost

    @property
    def cost(self) -> int:
        """Number of parameters of one rank."""
        return self.in_features + self.out_features + (self.e is not None)

    def keep(self, index: torch.Tensor, optimizer: torch.optim.Optimizer | None) -> None:
        """Keep the components `index` (n,) and free the others, with their gradients and moments."""
        resize.keep(self, "A", index, 0, optimizer)
        resize.keep(self, "B", index, 1, optimizer)
        if self.e is not None:
            resize.keep(self, "e", index, 0, optimizer)

    def append(
        self, a: torch.Tensor, b: torch.Tensor, e: torch.Tensor, optimizer: torch.optim.Optimizer | None
    ) -> None:
        """Append n components: a (n, in), b (out, n), and e (n,) if the adapter has e. Their moments start at zero."""
        resize.append(self, "A", a, 0, optimizer)
        resize.append(self, "B", b, 1, optimizer)
        if self.e is not None:
            resize.append(self, "e", e, 0, optimizer)

    def reshape(self, rank: int) -> None:
        """Resize to `rank` components, whose values are loaded afterwards.

        Parameters that have the right size already stay the same objects, so an optimizer keeps them.
        """
        current = self.A.shape[0]
        if rank < current:
            self.keep(torch.arange(rank), None)
        elif rank > current:
            more = rank - current
            a, b = self.A.new_zeros(more, self.in_features), self.B.new_zeros(self.out_features, more)
            self.append(a, b, self.A.new_zeros(more), None)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scale={self.scale:g}, dropout={self.dropout:g}"


def use_kernel(model: nn.Module, kernel: Kernel) -> None:
    """Set the kernel of every adapter in `model`."""
    for module in model.modules():
        if isinstance(module, Adapter):
            module.kernel = kernel


def check_rank(rank: int, layer: nn.Module) -> None:
    """Raise `ValueError` if a layer of this size can't have the rank."""
    out_features, in_features = layers.size(layer)
    largest = min(in_features, out_features)
    if rank > largest:
        raise ValueError(f"rank: {rank} for a layer of size {out_features}×{in_features}, allowed: 1 … {largest}")
