"""PrunedLoRA: LoRA from a large rank, whose components are pruned in rounds by what the loss would lose without them.

    y = W x + (α/r) B A dropout(x)                 A: r×in, kaiming-uniform(√5)    B: out×r, zero    r: the first rank
    for B with its gradient G:  H = Gᵀ G + ε I     R = B − G H⁻¹                   for A the same with rows
    S_i = ½ ‖R_i‖² / (H⁻¹)_ii of B  +  ½ ‖R_i‖² / (H⁻¹)_ii of A
    every `interval` steps, before the optimizer:  the `pruned` components of a layer with the smallest S are removed,
                                                   until it has its final rank

S_i is the least second-order loss at which the component i can be set to zero, with H in place of the Hessian. What is
removed is made up for by the columns that are left, as in Optimal Brain Surgeon: with P the removed ones,
B ← B − B_P (H⁻¹_PP)⁻¹ H⁻¹_P·, and A in the same way.

Paper     Yu et al. 2025, "PrunedLoRA: Robust Gradient-Based Structured Pruning for Low-Rank Adaptation in
          Fine-tuning", arXiv 2510.00192.
Code      LucasXinYu/PrunedLoRA bde4544, optimizer_new.py.
Budget    `budget` replaces target_rank: final ranks as even as integers allow, in the same proportion to the first.
Family    adaptive ranks
Trains    A and B
Changes   ranks: pruned in training, in every layer alike
Checked   written out: test_prunedlora test_a_round_written_out
Hooks     on_gradients  prunes, and moves what is left
          on_train_end  raises if a layer has not its final rank
Cost      r(in + out) parameters per layer with the first rank, later with fewer; two r×r matrices are inverted for each
          layer in a round.
Decay     A and B decay.

  | profile | paper | released |
  |---|---|---|
  | what is left | moves as above | stays |
  | rounds | from the step `interval` on | from the first step on, in which B is zero |

Known     The paper's text was not seen whole: S is the code's, the move follows from it. The exact minimum of the same
          expansion would also add −G H⁻¹, a Newton step by one step's gradient, which moves B by about 1/‖G‖: it is
          left out. A later commit of the code (3deb983) adds a move with the wrong shapes, and fails unless a layer is
          as wide as its rank. The released code keeps pruned components at zero by a mask before each update, so that
          their moments move them for one forward pass more; here they are removed with their moments. A layer's rank is
          never below `target_rank`, in the code it may be by `pruned` − 1. The scaling keeps the first rank, as there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import field_checks, layers
from variants.core.adapters.adapter import LowRank, check_rank
from variants.core.allocation.budget import above, spread
from variants.core.variant import AdapterVariant, Step

PROFILES = ("paper", "released")


@dataclass(kw_only=True)
class PrunedLoRA(AdapterVariant):
    """PrunedLoRA.

    rank, target_rank: of every layer at the start and at the end. alpha, dropout: as in LoRA.
    interval: steps between two rounds. pruned: components of a layer that a round removes at most.
    damping: ε. profile: "paper" or "released", see the module's docstring.
    budget: trained parameters at the end, in place of target_rank; rank and target_rank then determine the ratio of the
        first ranks to the final ones (`variants.core.allocation.budget`).
    """

    name: str = "prunedlora"
    rank: int = 16
    target_rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    interval: int = 10
    pruned: int = 2
    damping: float = 1e-6
    profile: str = "paper"
    budget: int | None = None

    adapters: dict[str, LowRank] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank", "target_rank", "interval", "pruned")
        field_checks.check_positive(self, "alpha", "damping")
        field_checks.check_fraction(self, "dropout")
        field_checks.check_one_of(self, "profile", PROFILES)
        field_checks.check_budget(self)
        if self.target_rank > self.rank:
            raise ValueError(f"target_rank: {self.target_rank}, allowed: at most rank, which is {self.rank}")
        self._starts: dict[str, int] = {}  # first ranks by layer
        self._ends: dict[str, int] = {}  # final ranks by layer
        self._total = math.inf  # steps of the run

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {"rank": 4, "target_rank": 2, "interval": 3, "pruned": 1},
            {"rank": 5, "target_rank": 2, "interval": 2, "profile": "released", "dropout": 0.1},
            {"rank": 4, "target_rank": 2, "interval": 2, "pruned": 1, "budget": 130},
        ]

    def plan(self, total_steps: int) -> None:
        self._total = total_steps
        if self.budget is None:
            self._check_rounds(self.rank - self.target_rank)

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        selected = self.select(model, head)
        self._starts, self._ends = dict.fromkeys(selected, self.rank), dict.fromkeys(selected, self.target_rank)
        if self.budget is not None:
            sizes = {name: layers.size(layer) for name, layer in selected.items()}
            costs, most = {n: sum(size) for n, size in sizes.items()}, {n: min(size) for n, size in sizes.items()}
            self._ends = spread(costs, self.budget, most)
            self._starts = above(costs, self.budget, most, self.rank / self.target_rank)
            self._check_rounds(max(self._starts[name] - self._ends[name] for name in selected))
        for name, layer in selected.items():
            check_rank(self._starts[name], layer)

    def _check_rounds(self, ranks: int) -> None:
        """Raise `ValueError` if the run is too short to remove so many ranks of a layer."""
        needed = math.ceil(ranks / self.pruned)
        if self._rounds(self._total) < needed:
            raise ValueError(
                f"interval: {self.interval}, allowed: one that leaves {needed} rounds in {self._total} steps for "
                f"{ranks} ranks, {self.pruned} in each; it leaves {self._rounds(self._total)}"
            )

    def _rounds(self, index: float) -> float:
        """Return the rounds up to the step `index`, counted from 1."""
        return (index - 1) // self.interval + 1 if self.profile == "released" else index // self.interval

    def build(self, name: str, layer: nn.Module) -> LowRank:
        rank = self._starts[name]
        return LowRank(layer, rank, self.alpha / rank, self.dropout)

    @torch.no_grad()
    def on_gradients(self, step: Step) -> None:
        removed = self.pruned * int(self._rounds(step.index))  # so far, later if a step was left out
        for name, adapter in self.adapters.items():
            rank = max(self._ends[name], self._starts[name] - removed)
            if rank < adapter.rank:
                if adapter.A.grad is None or adapter.B.grad is None:
                    raise ValueError(f"targets: {name} is not part of the loss; exclude it")
                self._prune(adapter, rank, step.optimizer)

    def _prune(self, adapter: LowRank, rank: int, optimizer: torch.optim.Optimizer) -> None:
        a, b = adapter.A, adapter.B
        assert a.grad is not None and b.grad is not None
        sides = [(a, a.grad.double()), (b.mT, b.grad.mT.double())]  # components are rows
        inverses = [torch.linalg.inv(g @ g.mT + self.damping * torch.eye(len(g)).to(g)) for _, g in sides]
        scores = sum(score(p.double(), g, inverse) for (p, g), inverse in zip(sides, inverses, strict=True))
        assert isinstance(scores, torch.Tensor)
        order = scores.argsort()
        gone, kept = order[: adapter.rank - rank], order[adapter.rank - rank :].sort().values
        if self.profile == "paper":
            for (p, _), inverse in zip(sides, inverses, strict=True):
                p -= (inverse[:, gone] @ torch.linalg.solve(inverse[gone][:, gone], p[gone].double())).to(p.dtype)
        adapter.keep(kept, optimizer)

    def is_final_form(self, step: Step) -> bool:
        return all(adapter.rank == self._ends[name] for name, adapter in self.adapters.items())

    def on_train_end(self, step: Step) -> None:
        for name, adapter in self.adapters.items():
            if adapter.rank != self._ends[name]:
                raise RuntimeError(f"target_rank: {name} ends with rank {adapter.rank}, not {self._ends[name]}")

    def state_dict(self) -> dict[str, Any]:
        return {"ranks": self.ranks()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, adapter in self.adapters.items():
            adapter.reshape(state["ranks"][name])


def score(p: torch.Tensor, gradient: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Return ½ ‖R_i‖² / (H⁻¹)_ii (r,). p, gradient: (r, …), a component in a row. inverse: H⁻¹ (r, r)."""
    return (p - inverse @ gradient).square().sum(1) / (2 * inverse.diagonal())
