"""AutoLoRA: a search before training finds the ranks by gates on the components, then LoRA is trained at these ranks.

    in the search   y = W x + (α/r) B diag(softmax(a)) A x        a: (r,) gates of a layer, one
    inner problem   min over A, B of the loss on one half of the batches
    outer problem   min over a of the loss on the other half, at the A, B that the inner problem has for a
    the gradient of a: d + (g(w′ − ε v) − g(w′ + ε v))/(2ε), with w′ after one inner step ahead, d and v the gradients
    of the outer loss at w′ by a and by w, g the gradient of the inner loss by a, ε = 0.01/‖v‖
    rank of a layer: the number of its gates that are at least average, afterwards A and B start again as in LoRA

Paper     Zhang et al. 2024, "AutoLoRA: Automatically Tuning Matrix Ranks in Low-Rank Adaptation Based on Meta
          Learning", NAACL, arXiv 2403.09113. Not the adversarial method of the same name.
Code      ruz048/AutoLoRA 314c6f4, run_glue_search.py, with Betty's DARTS hypergradient: Adam in both problems.
Budget    `budget` replaces the average as threshold: the components with the largest softmax(a) that fit, exact to
          less than a rank.
Family    adaptive ranks
Trains    A and B
Changes   ranks: chosen once, before training
Checked   released code: test_autolora test_every_number_of_the_released_search
Hooks     before_training  the search; sets ranks, draws A anew
Passes    100 steps of search before training (`search_steps`), of five passes forward and backward each
Cost      5 forward and backward passes for each of `search_steps` steps before training, with A, B, head, their
          moments and two copies; then r(in + out) parameters per layer, as LoRA.
Decay     A and B decay in training; in the search nothing does.

  | profile | paper | released |
  |---|---|---|
  | gates that are at least average | softmax(a)ᵢ ≥ 1/r | aᵢ/Σ a ≥ 1/r, though the forward pass uses the softmax |

Known     The head is trained in the inner problem and begins training as it began the search. Batches alternate
          between the problems, so that over several epochs a row may be in both; the paper divides the rows. The
          released code has one vector of gates for query and value of a block.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import collectives, field_checks, layers
from variants.core.adapters.adapter import LowRank, check_rank
from variants.core.allocation.budget import check_range, within
from variants.core.passes import Passes
from variants.core.variant import AdapterVariant

PROFILES = ("paper", "released")


class Gated(LowRank):
    """ΔW = scale · B diag(softmax(gates)) A; without gates, B A."""

    gates: torch.Tensor | None = None

    def diagonal(self) -> torch.Tensor | None:
        return None if self.gates is None else self.gates.softmax(0)


@dataclass(kw_only=True)
class AutoLoRA(AdapterVariant):
    """AutoLoRA.

    rank: of every layer in the search, the most that one may have. alpha, dropout: as in LoRA.
    search_steps: of the search. lr, gate_lr: its learning rates, of A, B and head, and of the gates.
    difference: ε times ‖v‖. profile: "paper" or "released", see the module's docstring.
    budget: trained parameters, in place of the threshold (`variants.core.allocation.budget`).
    """

    name: str = "autolora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    search_steps: int = 100
    lr: float = 3e-4
    gate_lr: float = 3e-4
    difference: float = 0.01
    profile: str = "paper"
    budget: int | None = None

    adapters: dict[str, Gated] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank", "search_steps")
        field_checks.check_positive(self, "alpha", "lr", "gate_lr", "difference")
        field_checks.check_fraction(self, "dropout")
        field_checks.check_one_of(self, "profile", PROFILES)
        field_checks.check_budget(self)
        if self.budget is not None and self.profile == "released":
            raise ValueError(f"budget: {self.budget} with profile: released, allowed: null; it has a threshold")

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        search = {"search_steps": 2, "lr": 0.02, "gate_lr": 0.1}
        return [
            {"rank": 3, **search},
            {"rank": 4, "profile": "released", "dropout": 0.1, "search_steps": 3, "lr": 0.1, "gate_lr": 1.5},
            {"rank": 4, "budget": 150, **search},
        ]

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        selected = self.select(model, head)
        for layer in selected.values():
            check_rank(self.rank, layer)
        if self.budget is not None:
            costs = [sum(layers.size(layer)) for layer in selected.values()]
            check_range(self.budget, min(costs), self.rank * sum(costs))

    def build(self, name: str, layer: nn.Module) -> Gated:
        return Gated(layer, self.rank, self.alpha / self.rank, self.dropout)

    def before_training(self, passes: Passes[Any]) -> None:
        for adapter in self.adapters.values():
            adapter.gates = torch.ones_like(adapter.A[:, 0]).requires_grad_()
        with passes.trial():
            search = Search(passes, self.gates(), self.lr, self.gate_lr, self.difference)
            for inner, outer in self.pairs(passes):
                search.step(inner, outer)
        ranks = self.found()
        with torch.no_grad():
            for name, adapter in self.adapters.items():
                self._set_rank(adapter, ranks[name])
                nn.init.zeros_(adapter.B)
                if ranks[name]:
                    nn.init.kaiming_uniform_(adapter.A, a=5**0.5)

    def pairs(self, passes: Passes[Any]) -> Iterator[tuple[Any, Any]]:
        """Yield a batch of the inner and one of the outer problem for every step of the search."""
        batches = passes.steps(2 * self.search_steps)
        return zip(batches, batches, strict=True)

    def gates(self) -> list[torch.Tensor]:
        """Return the gates (r,) of every layer, in the search."""
        return [adapter.gates for adapter in self.adapters.values() if adapter.gates is not None]

    def found(self) -> dict[str, int]:
        """Return the rank of every layer that the gates give."""
        gates = torch.stack(self.gates()).detach()
        if not gates.isfinite().all():
            raise ValueError("search_steps: the gates have become infinite; a smaller lr or gate_lr may help")
        shares = gates.softmax(1) if self.profile == "paper" else gates / gates.sum(1, keepdim=True)
        if self.budget is None:
            counts = (shares >= (1 - 1e-6) / self.rank).sum(1).tolist()  # equal gates are all average
        else:
            costs = [adapter.cost for adapter in self.adapters.values()]
            counts = [len(kept) for kept in within(list(shares), costs, self.budget)]
        return dict(zip(self.adapters, counts, strict=True))

    def _set_rank(self, adapter: Gated, rank: int) -> None:
        adapter.gates = None
        adapter.reshape(rank)
        adapter.scale = self.alpha / max(rank, 1)

    def state_dict(self) -> dict[str, Any]:
        return {"ranks": self.ranks()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, adapter in self.adapters.items():
            self._set_rank(adapter, state["ranks"][name])


class Search:
    """The two problems of the search: one step of each at a time.

    gates: (r,) of every layer. lr, gate_lr: of the two Adam. difference: ε ‖v‖.
    """

    def __init__(
        self, passes: Passes[Any], gates: list[torch.Tensor], lr: float, gate_lr: float, difference: float
    ) -> None:
        self.passes, self.gates, self.difference = passes, gates, difference
        self.weights = [p for p in passes.model.parameters() if p.requires_grad]
        self.inner = torch.optim.Adam(self.weights, lr=lr)
        self.outer = torch.optim.Adam(gates, lr=gate_lr, betas=(0.5, 0.999))

    def step(self, inner: Any, outer: Any) -> None:
        """Take a step of the gates on the batch `outer`, then one of the weights on `inner`."""
        before = [p.detach().clone() for p in self.weights], copy.deepcopy(self.inner.state_dict())
        self._backward(inner)
        self.inner.step()
        self._take(self._hypergradient(inner, outer))
        with torch.no_grad():
            for p, value in zip(self.weights, before[0], strict=True):
                p.copy_(value)
        self.inner.load_state_dict(before[1])
        self._backward(inner)
        self.inner.step()

    def _take(self, gradient: list[torch.Tensor]) -> None:
        for gate, g in zip(self.gates, gradient, strict=True):
            gate.grad = g
        self.outer.step()

    def _hypergradient(self, inner: Any, outer: Any) -> list[torch.Tensor]:
        """Return the gradient of the outer loss by the gates, through one inner step by finite differences."""
        direct = self._backward(outer)
        v = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.weights]
        size = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in v]))
        epsilon = self.difference / (float(size) + 1e-15)
        ahead = [p.detach().clone() for p in self.weights]
        sides = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                for p, w, g in zip(self.weights, ahead, v, strict=True):
                    p.copy_(w + sign * epsilon * g)
            sides.append(self._backward(inner))
        return [d + (minus - plus) / (2 * epsilon) for d, plus, minus in zip(direct, *sides, strict=True)]

    def _backward(self, batch: Any) -> list[torch.Tensor]:
        """Run a backward pass, which leaves the gradients of the weights; return those of the gates."""
        self.passes.model.zero_grad()
        for gate in self.gates:
            gate.grad = None
        self.passes.accumulate(batch)
        collectives.sum_gradients(self.passes.model)
        zeros = [torch.zeros_like(gate) if gate.grad is None else gate.grad for gate in self.gates]
        return [collectives.all_reduce_sum(gradient).clone() for gradient in zeros]


__all__ = ["AutoLoRA", "Gated", "Search"]
