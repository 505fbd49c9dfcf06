"""SpIEL: sparse fine-tuning whose entries move: values that stay small are replaced by entries with large gradients.

    y = (W + S) x        S: k trained values, zero at the start, at random indices at first

Every `reselection_steps` steps, in every layer, after gradients G = ∂L/∂W of `accumulation_steps` steps were collected:

  - candidates are the k indices with the largest abs(G) of the first batch; only their G are summed
  - the p k values with the smallest abs(value) are dropped
  - as many candidates outside the support are grown, by descending abs(Σ G); a candidate that was just dropped keeps
    its value
  - a grown value starts at zero, but its Adam moments do not: with a collected gradients,
    m = mean(G) (1 − β₁ᵃ), v = mean(G²) (1 − β₂ᵃ), so that both are unbiased after Adam's correction
  - every value has its own age, the number of gradients in its moments, which the bias correction uses

p is 1 at the first selection, which replaces all random indices, then `reselection_rate` (1 − t/T) (linear) or
`reselection_rate` (1 + cos(π t/T))/2 (cosine) at step t of T.

Paper     Ansell et al. 2024, "Scaling Sparse Fine-Tuning to Large Language Models", arXiv 2401.16405: SpIEL-AG.
Code      AlanAnsell/peft 73b455b, its selection "rigl".
Budget    `budget` replaces density: exactly so many entries, by the layers' sizes.
Family    sparse
Trains    k entries of W
Changes   mask: entries are exchanged every `reselection_steps` steps
Checked   written out: test_spiel test_the_trajectory_is_that_of_the_method_in_dense_tensors
Hooks     on_step_begin  decides whether to collect gradients
          on_gradients   adds the step's gradients to the sums
          on_update      counts ages, corrects the step by each value's age, then selects
          on_train_end   raises if no entry ever moved
Cost      k parameters, k indices and k ages per layer; 3 k numbers more while gradients are collected. W + S is formed
          in each forward pass and its gradient in each backward pass: a training step costs about as much as full
          fine-tuning of these layers, but only one layer's dense gradient exists at a time.
          The released code has a compiled kernel that forms neither.

Decay     the values decay, as in the released code, where one group has all trained parameters.

torch's Adam counts steps per parameter tensor. Its moments do not depend on the count, so the difference between
torch's step and the step with each value's age is added afterwards; this requires Adam or AdamW.

Where the released code differs from the method, `profile` chooses:

  | | paper (default) | released |
  |---|---|---|
  | collected steps | the last `accumulation_steps` before a selection | one more, but before the first |
  | what is summed | gradients of steps, clipped as for the optimizer | those of single batches, not clipped: |
  | | | with n per step, m is n times too small, v n² times |
  | a grown value's first step | corrected by age a + 1 | by a, though its moments have one gradient more |
  | ε | as torch adds it | added to √v before the correction |
  | decay, with AdamW | before the step | after it |
  | first selection, cosine | everything | by the curve |

The default is paper. Where the paper is not specific, it follows from the purpose of seeded moments and ages: a grown
value continues as if it had existed while gradients were collected. The result does not depend on how a batch is split,
except through the candidates.

Known     The second variant, SpIEL-MA, which grows where SM3's row and column accumulators are large, is not included:
          it needs its own optimizer. `density` is a fraction of the adapted weights; in the released code it is a
          fraction of the whole model. A layer that is used several times in a forward pass takes its candidates
          from the use whose gradient arrives first. No results on GLUE.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from variants.core import collectives, field_checks, layers
from variants.core.adapters.moving_delta import Estimate, MovingDelta
from variants.core.adapters.sparse_delta import check_finite
from variants.core.allocation.budget import apportion, check_range
from variants.core.masks.sources import Random
from variants.core.variant import AdapterVariant, Step

log = logging.getLogger(__name__)

PROFILES = ("paper", "released")
SCHEDULES = ("linear", "cosine")


@dataclass(kw_only=True)
class SpIEL(AdapterVariant):
    """SpIEL-AG.

    density: fraction of the entries that is trained, the same in every layer. seed: of the initial indices.
    reselection_steps: from one selection to the next. accumulation_steps: steps whose gradients select.
    reselection_rate: fraction that is exchanged, at step 0. rate_schedule: "linear" or "cosine".
    profile: "paper" or "released", see the module's docstring.
    budget: trained parameters, in place of density (`variants.core.allocation.budget`).
    """

    same_in_batches: ClassVar[bool] = False  # the first batch of a step chooses the candidates

    name: str = "spiel"
    density: float = 0.01
    reselection_steps: int = 20
    accumulation_steps: int = 5
    reselection_rate: float = 0.2
    rate_schedule: str = "linear"
    seed: int = 0
    profile: str = "paper"
    budget: int | None = None

    adapters: dict[str, MovingDelta] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "reselection_steps", "accumulation_steps")
        field_checks.check_int(self, "seed", at_least=0)
        field_checks.check_positive(self, "density", "reselection_rate")
        field_checks.check_fraction(self, "density")
        if self.reselection_rate > 1:
            raise ValueError(f"reselection_rate: {self.reselection_rate!r}, allowed: 0 < reselection_rate ≤ 1")
        field_checks.check_one_of(self, "rate_schedule", SCHEDULES)
        field_checks.check_one_of(self, "profile", PROFILES)
        most = self.reselection_steps - (2 if self.profile == "released" else 1)
        if self.accumulation_steps > most:
            raise ValueError(
                f"accumulation_steps: {self.accumulation_steps}, allowed: at most {most} with "
                f"reselection_steps: {self.reselection_steps} and profile: {self.profile}"
            )
        field_checks.check_budget(self, "density")
        self._entries: dict[str, int] = {}
        self._selections = 0
        self._moved: int | torch.Tensor = 0  # entries that have moved so far

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        steps = {"reselection_steps": 4, "accumulation_steps": 2}
        return [
            {"density": 0.2, **steps},
            {"density": 0.1, "rate_schedule": "cosine", "reselection_rate": 0.5, "seed": 1, **steps},
            {"density": 0.2, "profile": "released", "reselection_rate": 0.6, **steps},
            {"budget": 101, "reselection_steps": 5, "accumulation_steps": 4},
        ]

    def plan(self, total_steps: int) -> None:
        if self.accumulation_steps >= total_steps:
            raise ValueError(
                f"accumulation_steps: {self.accumulation_steps}, allowed: fewer than the run's {total_steps} steps"
            )
        if self.reselection_steps + self.accumulation_steps > total_steps:
            log.warning(
                "%s: reselection_steps: %d leaves one selection in %d steps, after step %d: entries move only once",
                *(self.name, self.reselection_steps, total_steps, self.accumulation_steps),
            )

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        sizes = {name: math.prod(layers.size(layer)) for name, layer in self.select(model, head).items()}
        total = sum(sizes.values())
        if self.budget is not None:
            check_range(self.budget, 1, total - 1)  # if all entries are trained, none can move
        elif round(self.density * total) < 1:
            raise ValueError(f"density: {self.density} of {total} entries is none, allowed: at least {1 / total:.2g}")
        count = round(self.density * total) if self.budget is None else self.budget
        self._entries = apportion(sizes, count, sizes)

    def build(self, name: str, layer: nn.Module) -> MovingDelta:
        indices = Random(seed=self.seed).permutation(name, layers.matrix(layer).numel())[: self._entries[name]]
        return MovingDelta(layer, indices.sort().values)

    def on_step_begin(self, step: Step) -> None:
        _check_optimizer(step.optimizer)
        phase = step.index % self.reselection_steps
        first = 0 if self.profile == "released" else 1
        for adapter in self.adapters.values():
            if phase == first or step.index == 1:
                adapter.estimate = None
            adapter.begin_step(watched=first <= phase <= self.accumulation_steps)

    @torch.no_grad()
    def on_gradients(self, step: Step) -> None:
        watched = {name: adapter for name, adapter in self.adapters.items() if adapter.watched and not adapter.is_empty}
        clipped = self._clipping(watched) if self.profile == "paper" else 1.0
        for name, adapter in watched.items():
            new = adapter.fresh
            if new is None:
                raise ValueError(f"selection: {name} is not part of the loss; exclude it")
            estimate = adapter.estimate or Estimate.empty(new.indices, new.total)
            if self.profile == "paper":
                whole = new.total * clipped
                estimate.add(whole, whole.square(), 1)
            else:
                estimate.add(new.total, new.squares, new.samples)
            estimate.steps += 1
            adapter.estimate = estimate

    @staticmethod
    def _clipping(adapters: Mapping[str, MovingDelta]) -> torch.Tensor | float:
        """Return the factor by which clipping has scaled the step's gradients, as a tensor on the device."""
        before, after = [], []
        for adapter in adapters.values():
            if adapter.values.grad is not None:
                present = collectives.all_reduce_sum(adapter.present)
                before.append(present @ present)
                after.append(adapter.values.grad @ present)
        if not before:
            return 1.0
        whole = torch.stack(before).double().sum()
        return torch.where(whole > 0, torch.stack(after).double().sum() / whole, 1.0)

    @torch.no_grad()
    def on_update(self, step: Step) -> None:
        groups = {id(parameter): group for group in step.optimizer.param_groups for parameter in group["params"]}
        for adapter in self.adapters.values():
            if adapter.values.grad is not None:  # else the optimizer has skipped it
                adapter.ages += 1
                self._correct(adapter, groups[id(adapter.values)], step.optimizer.state[adapter.values])
        due = [adapter for adapter in self.adapters.values() if adapter.estimate is not None]
        if due and step.index % self.reselection_steps >= self.accumulation_steps:
            self._check_finite()
            fraction = self._rate(step)
            for adapter in due:
                betas = groups[id(adapter.values)]["betas"]
                self._exchange(adapter, fraction, betas, step.optimizer.state[adapter.values])
                adapter.estimate = None
            self._selections += 1

    def _correct(self, adapter: MovingDelta, group: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Replace the step that torch has made by the step with each value's own age."""
        m, v, ages = state["exp_avg"], state["exp_avg_sq"], adapter.ages.to(adapter.values.dtype)
        options = group["lr"], group["betas"], group["eps"]
        by_torch = _adam_step(m, v, state["step"].to(ages.dtype), *options)
        by_age = _adam_step(m, v, ages, *options, corrects_eps=self.profile == "released")
        if self.profile == "released" and group.get("decoupled_weight_decay"):
            by_age = by_age * (1 - group["lr"] * group["weight_decay"])  # the decay acts on the step as well
        adapter.values.add_(by_torch - by_age)

    def _rate(self, step: Step) -> float:
        """Return p of the selection after this step."""
        done = step.index / step.total
        if not self._selections and (self.profile == "paper" or self.rate_schedule == "linear"):
            return 1.0
        curve = 1 - done if self.rate_schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.reselection_rate * curve

    def _exchange(
        self, adapter: MovingDelta, fraction: float, betas: tuple[float, float], state: Mapping[str, torch.Tensor]
    ) -> None:
        """Drop the smallest values and grow the candidates with the largest gradients in their slots."""
        estimate = adapter.estimate
        assert estimate is not None
        count = min(int(len(adapter.values) * fraction), len(estimate.indices))
        if not count:
            return
        # How many entries move is known on the device only, so all lists have `count` elements, valid ones first.
        current, candidates = adapter.indices, estimate.indices
        dropped = adapter.values.abs().argsort(stable=True)[:count]  # slots, by ascending value
        stays = torch.ones_like(current, dtype=torch.bool).index_fill(0, dropped, False)
        taken = torch.zeros(adapter.out_features * adapter.in_features, dtype=torch.bool, device=current.device)
        taken[current] = stays
        size = estimate.total.abs().masked_fill(taken[candidates], -1.0)
        grown = size.argsort(descending=True, stable=True)[:count]
        grows = size[grown] >= 0
        chosen = taken.zero_().index_put((candidates[grown],), grows)
        back = chosen[current[dropped]]  # dropped and grown at once: these stay
        left = taken.index_fill(0, current[dropped], True)
        comes = grows & ~left[candidates[grown]]
        slots, leaves = _in_front(dropped, ~back)
        new, comes = _in_front(grown, comes)
        moves = leaves & comes

        def put(tensor: torch.Tensor, new_values: torch.Tensor | float) -> None:
            """Write `new_values` (count,) into the slots of the entries that move."""
            tensor[slots] = torch.where(moves, new_values, tensor[slots]).to(tensor.dtype)

        indices = current.clone()
        put(indices, candidates[new])
        adapter.set_indices(indices)
        put(adapter.values, 0.0)
        for moment, total, beta in zip(
            ("exp_avg", "exp_avg_sq"), (estimate.total, estimate.squares), betas, strict=True
        ):
            put(state[moment], total[new] / estimate.samples * (1 - beta**estimate.steps))
        put(adapter.ages, estimate.steps - (self.profile == "released"))
        self._moved = self._moved + moves.sum()

    def _check_finite(self) -> None:
        estimates = {name: a.estimate.squares for name, a in self.adapters.items() if a.estimate is not None}
        check_finite(estimates, "selection: a gradient of {} was not finite")

    def is_final_form(self, step: Step) -> bool:
        return self._selections > 0

    def on_train_end(self, step: Step) -> None:
        if not self._selections:
            raise RuntimeError("selection: none was made, because too few steps had finite gradients")
        if not self._moved:
            raise RuntimeError("selection: no entry has ever moved; increase reselection_rate or density")

    def state_dict(self) -> dict[str, Any]:
        self._check_finite()
        of_layers = {}
        for name, adapter in self.adapters.items():
            estimate = None if adapter.estimate is None else adapter.estimate.state_dict()
            of_layers[name] = {"indices": adapter.indices, "ages": adapter.ages, "estimate": estimate}
        return {"layers": of_layers, "selections": self._selections, "moved": int(self._moved)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # Restoring an earlier checkpoint does not undo that entries have moved.
        self._selections, self._moved = state["selections"], max(int(self._moved), state["moved"])
        for name, adapter in self.adapters.items():
            saved, device = state["layers"][name], adapter.weight.device
            adapter.set_indices(saved["indices"])
            adapter.ages = saved["ages"].to(device, copy=True)
            estimate = saved["estimate"]
            adapter.estimate = None if estimate is None else Estimate.from_state(estimate, device)

    def start_from(self, state: Mapping[str, Any]) -> None:
        self.load_state_dict(state)
        for adapter in self.adapters.values():
            adapter.ages, adapter.estimate = torch.zeros_like(adapter.ages), None  # the new optimizer has no moments


def _in_front(numbers: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Reorder `numbers` (n,) so that those with `counts` (n,) come first, in their order; return both reordered."""
    order = (~counts).to(torch.int8).argsort(stable=True)
    return numbers[order], counts[order]


def _adam_step(
    m: torch.Tensor,
    v: torch.Tensor,
    ages: torch.Tensor,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    corrects_eps: bool = False,
) -> torch.Tensor:
    """Return what Adam subtracts for moments m, v (nnz,) with `ages` (nnz,) or () gradients.

    corrects_eps: whether ε is added to √v before its bias correction.
    """
    # 1 − βᵃ as −expm1(a ln β), which is accurate for β near 1.
    first, second = (-torch.expm1(ages * (math.log(beta) if beta else -math.inf)) for beta in betas)
    root = (v.sqrt() + eps) / second.sqrt() if corrects_eps else v.sqrt() / second.sqrt() + eps
    return lr * (m / first) / root


def _check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    if not isinstance(optimizer, torch.optim.Adam):  # AdamW is one
        kind = type(optimizer).__name__
        raise ValueError(f"optim.optimizer: {kind}, allowed: Adam, AdamW; entries that move have moments and ages")
    if any(group["amsgrad"] for group in optimizer.param_groups):
        raise ValueError("optim.optimizer: amsgrad, allowed: false; its maxima do not move with an entry")
