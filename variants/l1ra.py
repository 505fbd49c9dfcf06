"""L1RA: gates under an L1 norm close components, whose ranks go to layers that need all of theirs.

    y = W x + (α/r) B diag(c) A dropout(x)        A: r×in, N(0, 1/r²)    B: out×r, zero    c: (r,), one, within [0, 1]
    after every step  c ← c − η_c λ, not below zero; η_c is constant, whatever the schedule does to the others' rate
    every `every` T steps, before the forward pass: components with c < 1e-10 are removed, but one of a layer stays; as
    many new ones (A as at the start, B = 0, c = 1) go to the layers that lost none, those with the largest min c first

r is the rank at the start, also in the scaling and for new components. In the code c is `e`.

Paper     Singh et al. 2025, "L1RA: Dynamic Rank Assignment in LoRA Fine-Tuning", ICNLSP, arXiv 2509.04884.
Code      raul-singh/L1RA 76be3bb.
Budget    `budget` replaces rank: ranks as even as integers allow at the start, and after every round what fits. A layer
          may then lose its last component, and after the last round the gates rest, because what they close could not
          be handed out any more.
Family    adaptive ranks
Trains    A, B and c
Changes   ranks: moved between layers in training
Checked   written out: test_l1ra test_training_written_out
Hooks     on_step_begin  holds the gates' rate; removes components and hands them out
          on_update      the L1 step of c
          on_train_end   removes closed components; raises if a budget was not met
Cost      r(in + out + 1) parameters per layer.
Decay     A and B decay, c does not.

  | profile | paper | released |
  |---|---|---|
  | c | is projected onto [0, 1] after every step | is clamped in the forward pass; rounds see it as it is |
  | ranks that no layer can take | wait for the next round | are lost |
  | a layer's rank | at most what its size allows | without bound |
  | moments after a round that removed | stay | all are dropped, of the head, too |

Known     The released code's L1 step is inside an optimizer that is not public (AdamE); the step above is what its
          settings say. Whether its count of steps begins before or after the first one is not known; here a round comes
          after a whole number of intervals. That code counts batches, not steps. The paper's text was not compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from variants.core import field_checks, layers
from variants.core.adapters.adapter import LowRank, check_rank
from variants.core.allocation.budget import Budget, fill, spread
from variants.core.variant import AdapterVariant, Step

CLOSED = 1e-10  # c below which a component is removed


class Gates(LowRank):
    """ΔW = scale · B diag(c) A, where components with c ≤ 0 do not count.

    clamped: whether the forward pass clamps c. of_start: rank at the start.
    """

    counts_rank_on_device = True
    e: nn.Parameter

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float, clamped: bool) -> None:
        super().__init__(base, rank, scale, dropout, diagonal=True)
        self.of_start, self.clamped = rank, clamped
        nn.init.normal_(self.A, std=1 / rank)

    def diagonal(self) -> torch.Tensor:
        return self.e.clamp(0.0, 1.0) if self.clamped else self.e

    def drawn(self) -> torch.Tensor:
        """Return the row (1, in) of A of a new component."""
        return self.A.new_empty(1, self.in_features).normal_(std=1 / self.of_start)

    @property
    def rank(self) -> int:
        return self.rank_from(self.e.detach().cpu().numpy())

    def rank_source(self) -> torch.Tensor:
        return self.e

    def rank_from(self, source: np.ndarray) -> int:
        return min(int(np.count_nonzero(source > 0)), self.in_features, self.out_features)

    def closed_form(self) -> int:
        return len(self.e) * self.cost

    def effective_parameters(self) -> int:
        return self.effective_from(self.e.detach().cpu().numpy())

    def effective_from(self, source: np.ndarray) -> int:
        return int(np.count_nonzero(source > 0)) * self.cost


class Paper:
    """The method, in the points in which the released code differs."""

    clamps = False
    bounded = True
    loses = False

    def step(self, c: list[torch.Tensor], by: float) -> None:
        """Take `by` off every c, in place."""
        torch._foreach_sub_(c, by)
        torch._foreach_clamp_min_(c, 0.0)
        torch._foreach_clamp_max_(c, 1.0)

    def after_removal(self, optimizer: torch.optim.Optimizer) -> None:
        """What a round that removed components does to the optimizer."""


class Released(Paper):
    """The released code."""

    clamps = True
    bounded = False
    loses = True

    def step(self, c: list[torch.Tensor], by: float) -> None:
        for gate in c:
            gate.copy_(nn.functional.softshrink(gate, by))

    def after_removal(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.state.clear()


PROFILES = {"paper": Paper(), "released": Released()}


@dataclass(kw_only=True)
class L1RA(AdapterVariant):
    """L1RA.

    rank: of every layer at the start. alpha, dropout: as in LoRA. l1: λ. gate_lr: η_c. every: fraction of the run's
    steps between two rounds. reassign: whether what is removed is handed out. profile: see the module's docstring.
    budget: trained parameters, in place of rank (`variants.core.allocation.budget`).
    """

    name: str = "l1ra"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    l1: float = 1e-3
    gate_lr: float = 0.02
    every: float = 0.1
    reassign: bool = True
    profile: str = "paper"
    budget: int | None = None

    adapters: dict[str, Gates] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank")
        field_checks.check_positive(self, "alpha", "gate_lr", "every")
        field_checks.check_not_negative(self, "l1")
        field_checks.check_fraction(self, "dropout", "every")
        field_checks.check_one_of(self, "profile", tuple(PROFILES))
        field_checks.check_budget(self, "rank")
        if self.budget is not None:
            field_checks.check_without_effect(self, "reassign", f"budget: {self.budget}")
            if self.profile == "released":
                raise ValueError(f"budget: {self.budget} with profile: released, allowed: null; that code counts ranks")
        self._starts: dict[str, int] = {}
        self._moved = 0

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        fast = {"every": 0.17, "gate_lr": 0.6, "l1": 0.7}
        return [
            {"rank": 3, **fast},
            {"rank": 3, "profile": "released", "dropout": 0.1, **fast},
            {"rank": 3, "reassign": False, **fast},
            {"budget": 231, **fast},
        ]

    def plan(self, total_steps: int) -> None:
        if not 0 < self.interval(total_steps) < total_steps:
            raise ValueError(
                f"every: {self.every} of {total_steps} steps is {self.interval(total_steps)}, allowed: ≥ 1"
            )

    def interval(self, total: int) -> int:
        """Return the steps between two rounds."""
        return int(self.every * total)

    def last_round(self, total: int) -> int:
        """Return the number of steps before the last round."""
        return (total - 1) // self.interval(total) * self.interval(total)

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        selected = self.select(model, head)
        self._starts = dict.fromkeys(selected, self.rank)
        if self.budget is not None:
            sizes = {name: layers.size(layer) for name, layer in selected.items()}
            most = {name: min(size) for name, size in sizes.items()}
            self._starts = spread({name: sum(size) + 1 for name, size in sizes.items()}, self.budget, most)
            return
        for layer in selected.values():
            check_rank(self.rank, layer)

    def build(self, name: str, layer: nn.Module) -> Gates:
        rank = self._starts[name]
        return Gates(layer, rank, self.alpha / rank, self.dropout, PROFILES[self.profile].clamps)

    def optimizer_options(self, name: str) -> Mapping[str, Any]:
        return {"lr": self.gate_lr, "weight_decay": 0.0} if name.endswith(".e") else {}

    @torch.no_grad()
    def on_step_begin(self, step: Step) -> None:
        done = step.index - 1
        if done and done % self.interval(step.total) == 0:
            self._round(step.optimizer, last=done == self.last_round(step.total))
        rests = self.budget is not None and done >= self.last_round(step.total)
        gates = {id(adapter.e) for adapter in self.adapters.values()}
        for group in step.optimizer.param_groups:  # the schedule has set another rate
            if gates & set(map(id, group["params"])):
                group["lr"] = 0.0 if rests else self.gate_lr

    @torch.no_grad()
    def on_update(self, step: Step) -> None:
        if self.budget is not None and step.index > self.last_round(step.total):
            return
        gates = [adapter.e.detach() for adapter in self.adapters.values() if len(adapter.e)]
        PROFILES[self.profile].step(gates, self.gate_lr * self.l1)

    def _round(self, optimizer: torch.optim.Optimizer, last: bool) -> None:
        """Remove the closed components and hand them out."""
        profile, limit = PROFILES[self.profile], self._limit
        together = iter(torch.cat([adapter.e.detach() for adapter in self.adapters.values()]).tolist())
        gates = {name: [next(together) for _ in range(len(adapter.e))] for name, adapter in self.adapters.items()}
        lowest = {name: min(values, default=0.0) for name, values in gates.items()}
        before = self._allocated()
        for name, adapter in self.adapters.items():
            kept = [i for i, c in enumerate(gates[name]) if c >= CLOSED]
            if not kept and gates[name] and not limit.in_parameters:
                kept = [max(range(len(gates[name])), key=gates[name].__getitem__)]
            if len(kept) < len(gates[name]):
                adapter.keep(torch.tensor(kept, dtype=torch.int64, device=adapter.e.device), optimizer)
        freed = before - self._allocated()
        if freed:
            profile.after_removal(optimizer)
        if not self.reassign:
            return
        room = freed if profile.loses else limit.target - self._allocated()
        order = sorted((name for name in lowest if lowest[name] >= CLOSED), key=lambda name: -lowest[name])
        if last and limit.in_parameters:  # nobody can take what is left in a later round
            order += [name for name in lowest if name not in order]
        ranks = {name: len(adapter.e) for name, adapter in self.adapters.items()}
        sizes = {name: min(adapter.in_features, adapter.out_features) for name, adapter in self.adapters.items()}
        most = sizes if profile.bounded else {name: ranks[name] + room for name in sizes}
        prices = {name: limit.price(adapter) for name, adapter in self.adapters.items()}
        for name, count in fill(order, ranks, most, prices, room).items():
            adapter = self.adapters[name]
            self._moved += count
            for _ in range(count):
                new = adapter.drawn()
                adapter.append(new, new.new_zeros(adapter.out_features, 1), new.new_ones(1), optimizer)

    @property
    def _limit(self) -> Budget:
        return Budget.of(self.budget, sum(self._starts.values()))

    def _allocated(self) -> int:
        """Return what all components cost, closed ones included."""
        return sum(len(adapter.e) * self._limit.price(adapter) for adapter in self.adapters.values())

    def is_final_form(self, step: Step) -> bool:
        return self.budget is None or step.index > self.last_round(step.total)

    def on_train_end(self, step: Step) -> None:
        for adapter in self.adapters.values():
            if adapter.effective_parameters() < adapter.closed_form():
                adapter.keep((adapter.e.detach() > 0).nonzero().flatten(), step.optimizer)
        if self.budget is not None:
            self._limit.refuse_missed(self.adapters.values())

    def report(self) -> dict[str, float]:
        return {"moved_ranks": self._moved}

    def state_dict(self) -> dict[str, Any]:
        acting = {name: {"e": a.diagonal().detach()} for name, a in self.adapters.items() if a.clamped}
        components = {name: len(a.e) for name, a in self.adapters.items()}
        return {"components": components, "moved": self._moved, **({"acting": acting} if acting else {})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._moved = state["moved"]
        for name, adapter in self.adapters.items():
            adapter.reshape(state["components"][name])

    def start_from(self, state: Mapping[str, Any]) -> None:
        self.load_state_dict(state)
        self._moved = 0
