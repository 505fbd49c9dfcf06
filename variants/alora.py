"""ALoRA: ranks move to layers that lost none in a round, by what the loss is without each rank and with it alone.

    y = W x + s B A dropout(x)                       A: r×in, kaiming-uniform(√5)    B: out×r, zero    s = α/R
    IS(i) = L(without the component i) − L(with the component i alone, of all layers)      (AB-LoRA)
    `rounds` times, `interval` steps apart, after the first `initial_steps`:
        prune    the `exchange` components with the smallest IS, of all layers
        add      as many, one each and repeatedly, to the layers that lost none, in the order of their mean IS

L is the mean loss on `batches` steps' rows. R is the rank at the start. A new component is a new row of A and a zero
column of B.

Paper     Liu et al. 2024, "ALoRA: Allocating Low-Rank Adaptation for Fine-tuning Large Language Models", NAACL,
          arXiv 2403.16187: equation 6, algorithm 1.
Budget    `budget` replaces rank: ranks as even as integers allow at the start. If all layers lose ranks, or those that
          did not have no room, the others get what is left, so that it is exact to less than one rank.
Family    adaptive ranks
Trains    A and B
Changes   ranks: moved between layers in training
Passes    two losses for each rank in every round, without gradients
Checked   written out: test_alora test_a_round_written_out
Hooks     hold_passes   takes the rows on which losses are measured
          on_update     measures and moves
          on_train_end  raises if a budget was not met
Cost      r(in + out) parameters per layer. A round makes 2 Σ r forward passes: with 36 layers of rank 8 as many as 192
          steps of training.
Decay     A and B decay.
Known     No code was found. The paper's batch is from the development set, on which a run here chooses its checkpoint:
          L is on the rows of the first steps, which are trained on. The paper counts epochs (K₁ = 1, K₂ = 0.25, at most
          8 rounds) and moves as many ranks as there are modules (`exchange: null`). That new components start as LoRA's
          do, and the scaling, are assumed. In the paper ranks that no layer can take are lost (19.6 of 20 million
          parameters were left); a layer without ranks has no IS and gains none. Not aLoRA (arXiv 2504.12397), whose
          adapters begin to act at a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import field_checks
from variants.core.adapters.adapter import LowRank
from variants.core.allocation.ablation_loss import AblationLoss
from variants.core.allocation.allocators import on_host
from variants.core.allocation.budget import Budget, even_ranks, fill
from variants.core.passes import Passes
from variants.core.variant import AdapterVariant, Step


@dataclass(kw_only=True)
class ALoRA(AdapterVariant):
    """ALoRA.

    rank: of every layer at the start; without a budget, ranks that no layer can take are lost. alpha, dropout: as in
        LoRA.
    initial_steps: before the first round. interval: steps between two rounds. rounds: their number.
    exchange: components that move in a round; null for as many as layers. batches: steps whose rows L is measured on.
    budget: trained parameters, in place of rank (`variants.core.allocation.budget`).
    """

    name: str = "alora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    initial_steps: int = 100
    interval: int = 25
    rounds: int = 8
    exchange: int | None = None
    batches: int = 1
    budget: int | None = None

    adapters: dict[str, LowRank] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank", "initial_steps", "interval", "rounds", "batches")
        field_checks.check_positive(self, "alpha")
        field_checks.check_fraction(self, "dropout")
        field_checks.check_budget(self, "rank")
        if self.exchange is not None:
            field_checks.check_int(self, "exchange")
        self._starts: dict[str, int] = {}  # first ranks by layer
        self._made = 0  # rounds so far
        self._moved = 0  # ranks that have moved
        self._score = AblationLoss(batches=self.batches)

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {"rank": 2, "initial_steps": 3, "interval": 3, "rounds": 3},
            {"rank": 3, "initial_steps": 4, "interval": 2, "rounds": 2, "exchange": 2, "dropout": 0.1, "batches": 2},
            {"budget": 190, "initial_steps": 3, "interval": 4, "rounds": 2, "exchange": 5},
        ]

    def plan(self, total_steps: int) -> None:
        if (last := self.due(self.rounds)) >= total_steps:
            raise ValueError(
                f"rounds: {self.rounds}, the last one after step {last}, allowed: before the last step, {total_steps}"
            )

    def due(self, number: int) -> int:
        """Return the step after which the round `number`, from 1, is made."""
        return self.initial_steps + (number - 1) * self.interval

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        self._starts = even_ranks(self.select(model, head), self.rank, self.budget)
        total, exchange = sum(self._starts.values()), self.exchange or len(self._starts)
        if exchange >= total:
            raise ValueError(f"exchange: {exchange} of {total} ranks, allowed: at most {total - 1}")

    def build(self, name: str, layer: nn.Module) -> LowRank:
        rank = self._starts[name]
        return LowRank(layer, rank, self.alpha / rank, self.dropout)

    def hold_passes(self, passes: Passes[Any]) -> None:
        self._score.hold_passes(passes)

    @torch.no_grad()
    def on_update(self, step: Step) -> None:
        # A round whose step was left out is made after the next one.
        if self._made < self.rounds and step.index >= self.due(self._made + 1):
            self._made += 1
            self._move(on_host(self._score.scores(self.adapters)), step.optimizer)

    def _move(self, scores: Mapping[str, Sequence[float]], optimizer: torch.optim.Optimizer) -> None:
        """Prune the components with the lowest scores, and hand out what they cost."""
        limit, before = self._limit, sum(map(len, scores.values()))
        order = sorted((value, place, name) for name, values in scores.items() for place, value in enumerate(values))
        pruned: dict[str, list[int]] = {name: [] for name in scores}
        for _, place, name in order[: self.exchange or len(self.adapters)]:
            pruned[name].append(place)
        for name, places in pruned.items():
            adapter = self.adapters[name]
            if places:
                kept = [i for i in range(len(scores[name])) if i not in places]
                adapter.keep(torch.tensor(kept, dtype=torch.int64, device=adapter.A.device), optimizer)
        spared = [name for name, places in pruned.items() if not places and scores[name]]
        spared.sort(key=lambda name: -sum(scores[name]) / len(scores[name]))
        self._add(spared, limit.target if limit.in_parameters else before, optimizer)
        if limit.in_parameters:
            self._add([name for name in pruned if name not in spared], limit.target, optimizer)

    def _add(self, order: Sequence[str], allowed: int, optimizer: torch.optim.Optimizer) -> None:
        """Give ranks to the layers of `order`, until all ranks cost `allowed`."""
        limit, ranks = self._limit, self.ranks()
        prices = {name: limit.price(adapter) for name, adapter in self.adapters.items()}
        most = {name: min(a.in_features, a.out_features) for name, a in self.adapters.items()}
        room = allowed - limit.total(self.adapters.values())
        for name, count in fill(order, ranks, most, prices, room).items():
            if count:
                adapter = self.adapters[name]
                a = nn.init.kaiming_uniform_(adapter.A.new_empty(count, adapter.in_features), a=5**0.5)
                adapter.append(a, a.new_zeros(adapter.out_features, count), a.new_ones(count), optimizer)
                self._moved += count

    @property
    def _limit(self) -> Budget:
        return Budget.of(self.budget, sum(self._starts.values()))

    def is_final_form(self, step: Step) -> bool:
        return self._made == self.rounds

    def on_train_end(self, step: Step) -> None:
        if self._made < self.rounds:
            raise RuntimeError(f"rounds: {self._made} of {self.rounds} were made")
        if self.budget is not None:
            self._limit.refuse_missed(self.adapters.values())

    def report(self) -> dict[str, float]:
        return {"moved_ranks": self._moved, "losses": self._score.measured}

    def state_dict(self) -> dict[str, Any]:
        ranks = {name: len(adapter.A) for name, adapter in self.adapters.items()}
        return {"ranks": ranks, "made": self._made, "moved": self._moved, "score": self._score.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._made, self._moved = state["made"], state["moved"]
        self._score.load_state_dict(state["score"])
        for name, adapter in self.adapters.items():
            adapter.reshape(state["ranks"][name])
