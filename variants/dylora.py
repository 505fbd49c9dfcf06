"""DyLoRA: one training for all ranks up to R; every step draws a rank and uses that many first components.

    b ~ U{0 … R − 1}, one draw per step for all layers         A: r×in, kaiming-uniform(√5)    B: out×r, zero
    y = W x + α/(b + 1) · B[:, 0…b] A[0…b] dropout(x)          r = R
    frozen: only row b of A and column b of B are trained in the step
    in evaluation and at the end b + 1 is `eval_rank`, independent of the last draw

Paper     Valipour et al. 2023, "DyLoRA: Parameter-Efficient Tuning of Pre-trained Models using Dynamic
          Search-Free Low-Rank Adaptation", EACL, arXiv 2210.07558: algorithm 1.
Code      huawei-noah/Efficient-NLP bb44348, which scales both factors by √(R/(b + 1)) and the product by α/R.
Budget    `budget` replaces rank and eval_rank: ranks as even as integers allow, all of which remain. A layer with
          fewer components than were drawn uses all it has.
Family    low rank
Trains    A and B
Changes   the rank in use: drawn at every step
Checked   released code: test_dylora test_every_number_of_the_released_code; written out: test_dylora
          test_the_papers_trajectory_is_that_of_a_straight_implementation
Hooks     on_step_begin  draws b, from the method's own generator
          on_gradients   sets missing gradients to zero (profile released)
          on_train_end   removes components beyond eval_rank
Cost      R(in + out) parameters in training, eval_rank(in + out) at the end. A step computes b + 1 components; with
          `frozen` only one has gradients. Every component is a separate parameter.
Decay     A and B decay, as in the released code; `profile` decides for components that a step does not train.

Where paper and released code differ, `profile` chooses:

  | | paper (default) | released |
  |---|---|---|
  | components that a step does not train | do not change, nor do their moments and step counts | have zero
  | | | gradients, so Adam's moments and the decay keep moving them |

Differences from both
  During training the released code evaluates at the rank that was drawn last, so the choice of the best checkpoint
  depends on the draws. Here every evaluation is at `eval_rank`, and so is the reported model. On several devices the
  released code draws a rank for each of them.

Known     With `frozen` a component is trained in one of R steps only, on top of what the earlier components are at
          that moment. A short run may never draw some component; a warning at the end says so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import field_checks
from variants.core.adapters.adapter import Adapter, Factored
from variants.core.adapters.grow import remove_params
from variants.core.adapters.svd import Product
from variants.core.allocation import budget
from variants.core.variant import AdapterVariant, Step

log = logging.getLogger(__name__)

PROFILES = ("paper", "released")


class Nested(Factored):
    """ΔW = α/n Σ B_i A_i over the first n components, A_i (1, in) and B_i (out, 1).

    Components are separate parameters, so that the optimizer skips those without a gradient.
    kept: n in evaluation, and of ΔW. drawn: n in the current training step, None before the first one.
    frozen: whether only the last of the n components has a gradient.
    """

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float, kept: int, frozen: bool) -> None:
        super().__init__(base)
        self.set_dropout(dropout)
        device, dtype = self.weight.device, torch.promote_types(self.weight.dtype, torch.float32)
        a = torch.empty(rank, self.in_features, device=device, dtype=dtype)
        nn.init.kaiming_uniform_(a, a=5**0.5)
        self.A = nn.ParameterList(a.split(1))
        self.B = nn.ParameterList([a.new_zeros(self.out_features, 1) for _ in range(rank)])
        self.alpha, self.kept, self.frozen = alpha, kept, frozen
        self.drawn: int | None = None

    def _factor(self, components: nn.ParameterList, n: int, dim: int) -> torch.Tensor:
        parts = list(components)[:n]
        if self.training and self.frozen and self.drawn is not None:
            parts = [part.detach() for part in parts[:-1]] + parts[-1:]
        return torch.cat(parts, dim)

    @property
    def acting(self) -> int:
        """n of the current pass."""
        return self.kept if self.drawn is None or not self.training else self.drawn

    @property
    def scale(self) -> float:  # type: ignore[override]
        return self.alpha / self.acting

    def factors(self) -> tuple[torch.Tensor, torch.Tensor, None]:
        return self._factor(self.A, self.acting, 0), self._factor(self.B, self.acting, 1), None

    def delta(self) -> torch.Tensor:
        # With n of evaluation, also during a training step with another n.
        a, b = torch.cat(list(self.A)[: self.kept]), torch.cat(list(self.B)[: self.kept], 1)
        return (b * (self.alpha / self.kept)) @ a

    def as_product(self) -> Product:
        return Adapter.as_product(self)

    @property
    def rank(self) -> int:
        return self.kept

    @property
    def cost(self) -> int:
        """Number of parameters of one rank."""
        return self.in_features + self.out_features

    def closed_form(self) -> int:
        return len(self.A) * self.cost

    def effective_parameters(self) -> int:
        return self.kept * self.cost

    def components(self) -> list[nn.Parameter]:
        """Return the parameters: A_0 …, B_0 …"""
        return [*self.A, *self.B]

    def truncate(self, count: int) -> list[nn.Parameter]:
        """Remove the components after the first `count`; return their parameters."""
        removed = [*list(self.A)[count:], *list(self.B)[count:]]
        self.A, self.B = nn.ParameterList(list(self.A)[:count]), nn.ParameterList(list(self.B)[:count])
        return removed

    def extra_repr(self) -> str:
        return f"rank={self.kept} of {len(self.A)}, alpha={self.alpha:g}, dropout={self.dropout:g}"


@dataclass(kw_only=True)
class DyLoRA(AdapterVariant):
    """DyLoRA.

    rank: R, the largest that is trained. alpha, dropout: as in LoRA.
    eval_rank: of every evaluation and of the reported model; null for R.
    frozen: whether a step trains only the last of its components.
    profile: "paper" or "released", see the module's docstring. seed: of the draws.
    budget: trained parameters at the end, in place of rank and eval_rank (`variants.core.allocation.budget`).
    """

    name: str = "dylora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    eval_rank: int | None = None
    frozen: bool = True
    profile: str = "paper"
    seed: int = 0
    budget: int | None = None

    adapters: dict[str, Nested] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank")
        field_checks.check_int(self, "seed", at_least=0)
        field_checks.check_positive(self, "alpha")
        field_checks.check_fraction(self, "dropout")
        field_checks.check_one_of(self, "profile", PROFILES)
        field_checks.check_budget(self, "rank", "eval_rank")
        if self.eval_rank is not None:
            field_checks.check_int(self, "eval_rank")
            if self.eval_rank > self.rank:
                raise ValueError(f"eval_rank: {self.eval_rank}, allowed: at most rank, which is {self.rank}")
        self._ranks: dict[str, int] = {}  # R by layer
        self._generator = torch.Generator().manual_seed(self.seed)

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {"rank": 3},
            {"rank": 4, "eval_rank": 2, "dropout": 0.1},
            {"rank": 4, "frozen": False, "alpha": 4.0},
            {"rank": 3, "profile": "released", "seed": 3},
            {"budget": 150},
        ]

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        self._ranks = budget.even_ranks(self.select(model, head), self.rank, self.budget)

    def build(self, name: str, layer: nn.Module) -> Nested:
        rank = self._ranks[name]
        return Nested(layer, rank, self.alpha, self.dropout, self.eval_rank or rank, self.frozen)

    def draw(self) -> int:
        """Draw b, from 0 to R − 1."""
        return int(torch.randint(max(self._ranks.values()), (1,), generator=self._generator))

    def on_step_begin(self, step: Step) -> None:
        number = self.draw() + 1
        for adapter in self.adapters.values():
            adapter.drawn = min(number, len(adapter.A))

    def on_gradients(self, step: Step) -> None:
        if self.profile != "released":
            return
        for adapter in self.adapters.values():
            for parameter in adapter.components():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)

    def on_train_end(self, step: Step) -> None:
        for adapter in self.adapters.values():
            remove_params(step.optimizer, adapter.truncate(adapter.kept))
            adapter.drawn = None
        untrained = {i for adapter in self.adapters.values() for i, b in enumerate(adapter.B) if not b.any()}
        if untrained:
            numbers = ", ".join(map(str, sorted(untrained)))
            log.warning("%s: component %s was never drawn: ΔW has a lower rank; train longer", self.name, numbers)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state(), "ranks": {n: len(a.A) for n, a in self.adapters.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._generator.set_state(state["generator"].cpu())
        for name, adapter in self.adapters.items():
            saved, current = state["ranks"][name], len(adapter.A)
            if saved > current:
                raise ValueError(f"{name}: rank {current}, allowed: at least the {saved} of the saved state")
            adapter.truncate(saved)

    def start_from(self, state: Mapping[str, Any]) -> None:
        for name, adapter in self.adapters.items():
            if state["ranks"][name] != len(adapter.A):
                raise ValueError(
                    f"eval_rank: {self.eval_rank} has truncated {name} to rank {state['ranks'][name]}; allowed: null, "
                    f"which keeps all {len(adapter.A)} components that the method draws from"
                )
