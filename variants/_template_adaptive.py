"""Template of a method that adapts its ranks: components with the lowest scores are removed until a budget is met.

    y = W x + (α/r) · B A dropout(x)                        r: the initial rank
    S_i ← β S_i + (1 − β) |Σ_j A_ij ∂L/∂A_ij|               estimated change of the loss without component i
    b(t): number of parameters, decreasing linearly from the initial to the final one

# todo: if only the score is new, write a class for `variants.core.allocation.scores` instead (variants/README.md)
# todo: the method's equations, in the symbols of its paper, and where each symbol is in the code
Paper     # todo: of the method. Here the score of Molchanov et al. 2017, "Pruning Convolutional Neural Networks for
          Resource Efficient Inference", arXiv 1611.06440, on the components of LoRA.
Budget    `budget` is the number of parameters at the end, in place of target_rank: the components with the highest
          scores that fit into it are kept, so the result is less than one rank below it.
Family    adaptive ranks  # todo: as in `python -m variants list`
Trains    A and B
Changes   ranks: pruned in training, linearly  # todo: ranks, masks or what else changes, and when
Checked   the contract alone  # todo: released code, PEFT or written out: test_file test_function
Hooks     on_update     updates the scores from the step's gradients, then removes what does not fit into b(t)
          on_train_end  raises if the budget was not met
Cost      r(in + out) parameters at the start, and r numbers per layer for the scores.
Decay     A and B decay.
Known     # todo: known limitations
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import field_checks, layers
from variants.core.adapters.adapter import LowRank, check_rank
from variants.core.allocation.budget import check_range, within
from variants.core.allocation.schedule import check_fits
from variants.core.variant import AdapterVariant, Step


@dataclass(kw_only=True)
class AdaptiveTemplate(AdapterVariant):  # todo: the name of your class, here and in the YAML's _target_
    """LoRA whose ranks are pruned.

    rank: of every layer at the start. target_rank: average over the layers at the end. alpha, dropout: as in LoRA.
    beta: smoothing factor of the scores.
    initial_steps, final_steps: steps before the first component is removed, and after the last.
    interval: steps between two prunings.
    budget: trained parameters at the end, in place of target_rank (`variants.core.allocation.budget`).
    """

    name: str = "adaptive-template"  # todo: the method's name in tables, here and in the YAML
    rank: int = 12
    target_rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    beta: float = 0.85
    initial_steps: int = 0
    final_steps: int = 0
    interval: int = 1
    budget: int | None = None

    # The class of the adapters, for type checkers.
    adapters: dict[str, LowRank] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank", "target_rank", "interval")
        field_checks.check_int(self, "initial_steps", "final_steps", at_least=0)
        field_checks.check_positive(self, "alpha")
        field_checks.check_fraction(self, "dropout", "beta")
        field_checks.check_budget(self, "target_rank")  # the budget decides target_rank
        if self.budget is None and self.target_rank > self.rank:
            raise ValueError(f"target_rank: {self.target_rank}, allowed: at most rank, which is {self.rank}")
        self._scores: dict[str, torch.Tensor] = {}  # S (r,) by layer

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        steps = {"initial_steps": 2, "final_steps": 3}
        return [
            {"rank": 4, "target_rank": 2, **steps},
            {"rank": 4, "target_rank": 1, "interval": 3, "dropout": 0.1, **steps},
            {"rank": 4, "budget": 150, **steps},
        ]

    def plan(self, total_steps: int) -> None:
        check_fits(self.initial_steps, self.final_steps, total_steps)

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        selected = self.select(model, head).values()
        for layer in selected:
            check_rank(self.rank, layer)
        if self.budget is not None:
            costs = [sum(layers.size(layer)) for layer in selected]  # parameters of one component of each layer
            check_range(self.budget, min(costs), self.rank * sum(costs))

    def build(self, name: str, layer: nn.Module) -> LowRank:
        adapter = LowRank(layer, self.rank, self.alpha / self.rank, self.dropout)
        self._scores[name] = adapter.A.new_zeros(self.rank).detach()
        return adapter

    @property
    def target(self) -> int:
        """Number of parameters at the end."""
        if self.budget is not None:
            return self.budget
        return self.target_rank * sum(adapter.cost for adapter in self.adapters.values())

    def on_update(self, step: Step) -> None:
        self._score()
        # b(t) is the initial number after step `initial_steps` and the target after step `last`.
        last = step.total - self.final_steps
        fraction = (step.index - self.initial_steps) / (last - self.initial_steps)
        if fraction <= 0 or (step.index < last and step.index % self.interval):
            return
        start = self.rank * sum(adapter.cost for adapter in self.adapters.values())
        self._prune(int(start + (self.target - start) * min(fraction, 1.0)), step.optimizer)

    @torch.no_grad()
    def _score(self) -> None:
        for name, adapter in self.adapters.items():
            if not adapter.is_empty:  # an empty adapter is not part of the loss and has no gradients
                assert adapter.A.grad is not None
                now = (adapter.A * adapter.A.grad).sum(1).abs()
                self._scores[name] = self.beta * self._scores[name] + (1 - self.beta) * now

    def _prune(self, budget: int, optimizer: torch.optim.Optimizer) -> None:
        """Keep the components with the highest scores whose parameters fit into `budget`."""
        if self.effective_parameters() <= budget:
            return
        costs = [adapter.cost for adapter in self.adapters.values()]
        kept = within([self._scores[name] for name in self.adapters], costs, budget)
        for (name, adapter), components in zip(self.adapters.items(), kept, strict=True):
            index = torch.tensor(components, dtype=torch.int64, device=adapter.A.device)
            adapter.keep(index, optimizer)  # resizes gradients and moments, too
            self._scores[name] = self._scores[name][index]

    def is_final_form(self, step: Step) -> bool:
        return self.effective_parameters() <= self.target

    def on_train_end(self, step: Step) -> None:
        if not self.is_final_form(step):
            raise RuntimeError(
                f"budget: {self.effective_parameters()} parameters are left, the target is {self.target}"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"scores": dict(self._scores)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, adapter in self.adapters.items():
            scores = state["scores"][name]
            adapter.reshape(len(scores))  # the saved parameters are loaded afterwards
            self._scores[name] = scores.to(adapter.A.device)
