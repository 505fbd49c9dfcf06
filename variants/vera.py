"""VeRA: two random matrices that all layers share, between trained vectors of each layer.

    y = W x + b ∘ (B (d ∘ (A x)))        A: r×in, B: out×r, kaiming-uniform, frozen
                                         d: (r,), `d_start`    b: (out,), zero

A and B are drawn once, as large as the widest layer asks for; a layer takes the first rows and columns that it needs.

Paper     Kopiczko et al. 2024, "VeRA: Vector-based Random Matrix Adaptation", ICLR, arXiv 2310.11454.
Code      PEFT 0.21.2, tuners/vera.
Budget    `budget` replaces rank: ranks as even as integers allow, exact, because a rank costs one parameter. A layer
          costs its outputs as well.
Family    low rank
Trains    d and b
Changes   nothing
Checked   PEFT: test_vera test_trajectory_of_peft
Hooks     none: only the parameters change in training.
Cost      r + out parameters per layer; r(largest in + largest out) random numbers, once for all layers, which are saved
          with them. Two frozen products a layer, of which A x and B (d ∘ (A x)) are saved for the backward pass, and
          not x.
Decay     d and b decay.
Known     The rank is not bounded by the layers' sizes: d has r entries, whatever rank ΔW can have. That layers of
          different shapes share by slices is PEFT's rule; the paper's text was not compared. With matrices of each
          layer's own, which train at first, it is `aflora`, whose released runs use rates of 1e-3 … 2e-2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from variants.core import field_checks, layers
from variants.core.adapters.adapter import Factored
from variants.core.variant import AdapterVariant


class Shared:
    """A (r, largest in) and B (largest out, r), in one copy for each device on which layers lie."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor) -> None:
        self.a, self.b = a, b
        self._copies = {a.device: (a, b)}

    def on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if device not in self._copies:
            self._copies[device] = self.a.to(device), self.b.to(device)
        return self._copies[device]

    def set(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Set other values of the same shapes, on all devices."""
        with torch.no_grad():
            for own in self._copies.values():
                own[0].copy_(a), own[1].copy_(b)


class Projected(Factored):
    """ΔW = diag(b) B diag(d) A with trained d (r,) and b (out,), and the matrices of all layers."""

    scale = 1.0

    def __init__(self, base: nn.Module, rank: int, d_start: float, shared: Shared) -> None:
        super().__init__(base)
        self.shared = shared
        self.d = nn.Parameter(torch.full((rank,), d_start, device=self.weight.device, dtype=shared.a.dtype))
        self.b = nn.Parameter(torch.zeros(self.out_features, device=self.weight.device, dtype=shared.a.dtype))

    def matrices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return this layer's part of A (r, in) and of B (out, r)."""
        a, b = self.shared.on(self.d.device)
        return a[: len(self.d), : self.in_features], b[: self.out_features, : len(self.d)]

    def factors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        a, b = self.matrices()
        return a, b * self.b[:, None], self.d

    def product(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y = F.linear(x, weight, self.layer_kind.layer.bias)
        return y + self.update(x).to(y.dtype)

    def apply_factors(self, x: torch.Tensor) -> torch.Tensor:
        if not self.layer_kind.is_product:
            return super().apply_factors(x)
        a, b = self.matrices()  # one after the other, because r may be large: B diag(b) is never formed
        return F.linear(F.linear(x, a) * self.d, b) * self.b

    @property
    def rank(self) -> int:
        return min(len(self.d), self.in_features, self.out_features)

    def closed_form(self) -> int:
        return len(self.d) + self.out_features


@dataclass(kw_only=True)
class VeRA(AdapterVariant):
    """VeRA.

    rank: r of every layer. d_start: d at the start.
    budget: trained parameters, in place of rank (`variants.core.allocation.budget`).
    """

    name: str = "vera"
    rank: int = 256
    d_start: float = 0.1
    budget: int | None = None

    adapters: dict[str, Projected] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank")
        field_checks.check_positive(self, "d_start")
        field_checks.check_budget(self, "rank")
        self._ranks: dict[str, int] = {}
        self._shape = (0, 0, 0)  # r, largest in, largest out
        self._shared: Shared | None = None

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [{"rank": 6, "d_start": 1.0}, {"rank": 20, "d_start": 0.5}, {"budget": 75}]

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        sizes = {name: layers.size(layer) for name, layer in self.select(model, head).items()}
        outputs = sum(out for out, _ in sizes.values())
        self._ranks = dict.fromkeys(sizes, self.rank)
        if self.budget is not None:
            even, further = divmod(self.budget - outputs, len(sizes))
            if even < 1:
                least = outputs + len(sizes)
                raise ValueError(f"budget: {self.budget} parameters, allowed for these targets: at least {least}")
            names = list(sizes)
            one_more = {names[i * len(names) // further] for i in range(further)}  # spread over the model's depth
            self._ranks = {name: even + (name in one_more) for name in names}
        self._shape = (max(self._ranks.values()), max(i for _, i in sizes.values()), max(o for o, _ in sizes.values()))
        self._shared = None

    def build(self, name: str, layer: nn.Module) -> Projected:
        if self._shared is None:
            weight, (rank, columns, rows) = layers.matrix(layer), self._shape
            like = weight.new_empty(0, dtype=torch.promote_types(weight.dtype, torch.float32))
            a, b = (nn.init.kaiming_uniform_(like.new_empty(shape)) for shape in ((rank, columns), (rows, rank)))
            self._shared = Shared(a, b)
        return Projected(layer, self._ranks[name], self.d_start, self._shared)

    def state_dict(self) -> dict[str, Any]:
        assert self._shared is not None
        return {"shared": {"A": self._shared.a, "B": self._shared.b}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert self._shared is not None
        self._shared.set(state["shared"]["A"], state["shared"]["B"])
