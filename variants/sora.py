"""SoRA: sparse low-rank adaptation, with gates that a proximal step sets to exactly zero.

    y = W x + (α/r) B (g ∘ A dropout(x))    A: r×in, kaiming-uniform(√5)    B: out×r, zero    g: r (our e), N(0, 1)

    L + λ Σ|g| / n                          n: gate scalars over all layers
    g ← T_ξ(g)                              after every optimizer step; ξ is not multiplied by the learning rate

A gate at zero is not frozen: it returns if its optimizer step exceeds the proximal step. Components whose gate is zero
after training are removed. `schedule` raises ξ in stages, as the paper's sparsifying scheduler does: linear, log_linear
(equal steps of e^ξ), exp_linear (equal steps of ln ξ).

Paper     Ding et al. 2023, "Sparse Low-rank Adaptation of Pre-trained Language Models", EMNLP,
          arXiv 2311.11696; T_ξ is its soft threshold, the scheduler its algorithm 1.
Code      TsinghuaC3I/SoRA c275ac2.
Family    adaptive ranks
Trains    A, B and gates
Changes   ranks: gates close in training
Checked   released code: test_sora test_every_number_of_the_released_code,
          test_the_released_main_optimizer_is_reproduced_over_a_whole_run
Hooks     penalty       the L1 term, scaled by λ
          on_gradients  sets eps of the optimizer (profile released)
          on_update     the proximal step; weight decay after the step, if set
          on_train_end  removes components whose gate is zero, with gradients and moments
Cost      r(in + out + 1) parameters of the initial rank throughout training; a few operations on r
          numbers per layer and step. Without `budget` λ and ξ decide the final ranks.
Decay     A and B decay, by the run's optimizer or by `decay_after_step`; gates never decay.

Where paper and released code differ, `profile` chooses:

  | | paper (default) | released |
  |---|---|---|
  | T_ξ(g) | sign(g) · max(abs(g) − ξ, 0) | three in-place statements, each on the result of the one before: |
  | | | abs(g) > ξ shrinks by ξ, then abs(g) < ξ becomes 0 |
  | ξ < abs(g) < 2ξ | abs(g) − ξ | 0 |
  | abs(g) = ξ | 0 | survives unchanged |
  | r above min(in, out) | refused | accepted: more gates than the largest rank of ΔW |
  | optimizer of g | the run's, without decay | Adam(0.9, 0.999), ε = 10⁻⁶ added to √v before its bias correction |
  | optimizer of A, B | the run's | the run's ε added to √v before its bias correction, decay after the step |

The default is paper: the dead zone up to 2ξ results from the order of the statements, not from the method. `released`
writes ε/√(1 − β₂ᵗ) into the groups before each step, which makes torch's AdamW take the released step; therefore gates,
and A and B, need separate groups and Adam. In the first steps this ε has a large effect: it is 32 times torch's at the
first step and 10 times at the tenth.

The released decay is `decay_after_step`. If A and B have torch's decay instead (`optim.weight_decay` with
`decay_after_step: 0`), the run corresponds to the released code with torch's AdamW as its main optimizer: ε of A and B
is torch's too, and a warning says so. Both are compared with stored runs or with the statements themselves.

As in the released code in both profiles: the L1 gradient and the proximal step act together.
Unlike the released code in both profiles:

  - Its head stays random: the names that it unfreezes do not match, so pooler, classifier and layer norms are never
    trained. Here the head is trained.
  - Its parameter count subtracts 2 · hidden size for each zero gate, which is wrong in feed-forward matrices, and omits
    the gates. Here counts are by real shapes.
  - Its later stages continue with a finished learning-rate schedule, so gates can only shrink there. Here all stages
    are within the run and its one schedule.

Budget    The method has none; `budget` adds one. The cost of open gates is limited by a cubic curve, from all gates
          after `initial_steps` to the budget `final_steps` before the end: the smallest |g| beyond it are set to zero.
          The largest |g| that fill the budget are not changed if T_ξ would set them to zero. So λ and ξ decide which
          gates remain, and the budget decides how many. Only profile paper supports it.

Known     While B is about zero, only the L1 term acts on a gate, and Adam normalises it to about one learning rate per
          step, whatever λ is. λ matters only relative to the task's gradient. As the learning rate falls, gates no
          longer return, so most of the sparsity arises late. ξ is per step: a longer run is sparser.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from variants.core import field_checks, layers
from variants.core.adapters.adapter import LowRank, check_rank
from variants.core.allocation.budget import Budget, check_range, masks, within
from variants.core.allocation.schedule import Cubic
from variants.core.variant import AdapterVariant, Step

log = logging.getLogger(__name__)

PROFILES = ("paper", "released")
SCHEDULES = ("constant", "linear", "log_linear", "exp_linear")
GATE_BETAS, GATE_EPS = (0.9, 0.999), 1e-6  # of the released gate optimizer


def proximal(g: torch.Tensor, threshold: float, profile: str) -> torch.Tensor:
    """Return `g` after the proximal step with ξ = `threshold`; see the module's docstring for the profiles."""
    if profile == "paper":
        return F.softshrink(g, threshold)
    g = torch.where(g > threshold, g - threshold, g)
    g = torch.where(g < -threshold, g + threshold, g)
    return torch.where(g.abs() < threshold, 0.0, g)


def thresholds(schedule: str, first: float, last: float, stages: int) -> list[float]:
    """Return ξ of each stage, from `first` to `last`."""
    if schedule == "log_linear":
        return np.log(np.linspace(np.exp(first), np.exp(last), stages)).tolist()
    if schedule == "exp_linear":
        return np.exp(np.linspace(np.log(first), np.log(last), stages)).tolist()
    return np.linspace(first, last, stages).tolist()


class Gated(LowRank):
    """B diag(e) A with e as gates; there may be more of them than the layer has rows or columns."""

    counts_rank_on_device = True

    def __init__(self, base: nn.Module, gates: int, scale: float, dropout: float) -> None:
        super().__init__(base, gates, scale, dropout, diagonal=True)
        nn.init.normal_(self.gate)

    @property
    def gate(self) -> nn.Parameter:
        assert self.e is not None
        return self.e

    @property
    def open(self) -> int:
        """Number of gates that are not zero."""
        return int(torch.count_nonzero(self.gate))

    @property
    def rank(self) -> int:
        return min(self.open, self.in_features, self.out_features)

    def rank_source(self) -> torch.Tensor:
        return self.gate

    def rank_from(self, source: np.ndarray) -> int:
        return min(int(np.count_nonzero(source)), self.in_features, self.out_features)

    def closed_form(self) -> int:
        return len(self.gate) * self.cost

    def effective_parameters(self) -> int:
        return self.open * self.cost

    def effective_from(self, source: np.ndarray) -> int:
        return int(np.count_nonzero(source)) * self.cost


@dataclass(kw_only=True)
class SoRA(AdapterVariant):
    """SoRA.

    rank: of every layer at the start. alpha, dropout: as in LoRA.
    l1: λ. threshold: ξ, with a schedule that of the first stage.
    schedule: "constant", or how ξ rises to `max_threshold` in `stages` values: "linear", "log_linear", "exp_linear".
    stage_steps: optimizer steps of a stage. first_stage_steps: of the first stage; null for the same number.
        The last stage lasts until the end of the run, and only its models may be the reported one.
    gate_lr_scale: learning rate of the gates relative to the run's.
    decay_after_step: weight decay of A and B after the step, instead of the run's; 0 for the run's.
    initial_steps, final_steps: with a budget, steps before the curve begins and after it ends.
    profile: "paper" or "released", see the module's docstring.
    budget: trained parameters at the end; without it λ and ξ decide (`variants.core.allocation.budget`).
    """

    name: str = "sora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    l1: float = 10.0
    threshold: float = 3e-4
    schedule: str = "constant"
    max_threshold: float | None = None
    stages: int | None = None
    stage_steps: int | None = None
    first_stage_steps: int | None = None
    gate_lr_scale: float = 1.0
    decay_after_step: float = 0.0
    initial_steps: int = 0
    final_steps: int = 0
    profile: str = "paper"
    budget: int | None = None

    adapters: dict[str, Gated] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_one_of(self, "profile", PROFILES)
        field_checks.check_one_of(self, "schedule", SCHEDULES)
        field_checks.check_int(self, "rank")
        field_checks.check_positive(self, "alpha", "gate_lr_scale")
        field_checks.check_not_negative(self, "l1", "threshold", "decay_after_step")
        field_checks.check_fraction(self, "dropout")
        self._thresholds = [float(self.threshold)]
        if self.schedule == "constant":
            for name in ("max_threshold", "stages", "stage_steps", "first_stage_steps"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: {getattr(self, name)!r}, allowed with schedule=constant: null")
        else:
            field_checks.check_int(self, "stages", at_least=2)
            field_checks.check_int(self, "stage_steps")
            if self.first_stage_steps is not None:
                field_checks.check_int(self, "first_stage_steps")
            above = self.max_threshold is not None and self.max_threshold > self.threshold
            field_checks.check("max_threshold", self.max_threshold, above, f"a number > {self.threshold:g}")
            if self.schedule == "exp_linear" and not self.threshold:
                raise ValueError("threshold: 0, allowed with schedule=exp_linear: a number > 0; it takes its logarithm")
            assert self.max_threshold is not None and self.stages is not None
            self._thresholds = thresholds(self.schedule, self.threshold, self.max_threshold, self.stages)
        field_checks.check_budget(self)
        field_checks.check_int(self, "initial_steps", "final_steps", at_least=0)
        if self.budget is None and (self.initial_steps or self.final_steps):
            name = "initial_steps" if self.initial_steps else "final_steps"
            raise ValueError(f"{name}: {getattr(self, name)}, allowed without a budget: 0; they time its curve")
        if self.budget is not None and self.profile == "released":
            raise ValueError(f"budget: {self.budget} with profile: released, allowed: null; that code has none")
        self._zeroed: bool | torch.Tensor = False  # whether any gate was ever zero
        self._steps: int | None = None  # steps of the gates' optimizer (profile released)

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        staged = {"threshold": 0.01, "max_threshold": 0.06, "stages": 3, "stage_steps": 3}
        return [
            {"rank": 4, "threshold": 0.03},
            {"rank": 4, "threshold": 0.02, "profile": "released", "dropout": 0.1},
            {"rank": 4, "l1": 0.1, "schedule": "linear", "first_stage_steps": 5, **staged},
            {"rank": 3, "schedule": "exp_linear", "profile": "released", "gate_lr_scale": 2.0, **staged},
            {"rank": 2, "threshold": 0.5, "decay_after_step": 0.1, "l1": 0.0},
            {"rank": 4, "threshold": 0.2, "budget": 150, "final_steps": 3},
            {"rank": 4, "threshold": 1e-4, "budget": 150, "initial_steps": 2, "final_steps": 3},
        ]

    def plan(self, total_steps: int) -> None:
        if self.budget is not None:
            Cubic(self.budget, self.budget, total_steps - 1, self.initial_steps, self.final_steps, 1)
        begins = self._begin(len(self._thresholds) - 1)
        if begins >= total_steps:
            raise ValueError(
                f"stage_steps: {self.stage_steps}, the last of {self.stages} stages would begin after step {begins}, "
                f"allowed: one that begins before the run ends, at step {total_steps}"
            )

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        selected = self.select(model, head).values()
        for layer in selected:
            self._check_size(layer)
        if self.budget is not None:
            costs = [sum(layers.size(layer)) + 1 for layer in selected]
            check_range(self.budget, min(costs), self.rank * sum(costs))

    def build(self, name: str, layer: nn.Module) -> Gated:
        self._check_size(layer)
        return Gated(layer, self.rank, self.alpha / self.rank, self.dropout)

    def optimizer_options(self, name: str) -> Mapping[str, Any]:
        if not name.endswith(".e"):
            return {"weight_decay": 0.0} if self.decay_after_step else {}
        options: dict[str, Any] = {"lr_scale": self.gate_lr_scale, "weight_decay": 0.0}
        return options | ({"betas": GATE_BETAS, "eps": GATE_EPS} if self.profile == "released" else {})

    def penalty(self) -> torch.Tensor | None:
        gates: list[torch.Tensor] = [adapter.gate for adapter in self.adapters.values() if len(adapter.gate)]
        # A finished adapter may have no gates left, and the mean of an empty tensor is NaN.
        return self.l1 * torch.cat(gates).abs().mean() if self.l1 and gates else None

    def on_gradients(self, step: Step) -> None:
        if self.profile != "released":
            return
        if not isinstance(step.optimizer, torch.optim.Adam):  # AdamW is one
            kind = type(step.optimizer).__name__
            raise ValueError(f"profile: released with the optimizer {kind}, allowed: Adam, AdamW")
        gates = [adapter.gate for adapter in self.adapters.values()]
        of_gates = self._groups("gates", gates, step.optimizer)
        main = self._groups("A and B", self._matrices(), step.optimizer)
        if self._steps is None:  # only once, because the optimizer may count on the device
            self._steps = max(int(step.optimizer.state.get(gate, {}).get("step", 0)) for gate in gates)
            if decay := max(group["weight_decay"] for group in main):
                log.warning(
                    "%s: profile: released with optim.weight_decay: %g has torch's AdamW move A and B; "
                    "decay_after_step=%g has the released code's",
                    *(self.name, decay, decay),
                )
        self._steps += 1  # like the optimizer's count, without steps whose gradients were not finite
        groups = [(GATE_EPS, group) for group in of_gates]
        groups += [(step.optimizer.defaults["eps"], group) for group in main if not group["weight_decay"]]
        for eps, group in groups:
            group["eps"] = eps / math.sqrt(1 - group["betas"][1] ** self._steps)

    @staticmethod
    def _groups(what: str, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
        """Return the optimizer's groups with `parameters`; raise if they have others. what: name for the error."""
        wanted = set(map(id, parameters))
        groups = [group for group in optimizer.param_groups if wanted & set(map(id, group["params"]))]
        if any(set(map(id, group["params"])) - wanted for group in groups):
            raise ValueError(f"profile: released with {what} in a group with others, allowed: optimizer_options kept")
        return groups

    def _matrices(self) -> list[nn.Parameter]:
        return [parameter for adapter in self.adapters.values() for parameter in (adapter.A, adapter.B)]

    @torch.no_grad()
    def on_update(self, step: Step) -> None:
        if self.decay_after_step:
            self._decay(step.optimizer)
        threshold = self._thresholds[self._stage(step.index - 1)]
        gates = [adapter.gate.detach() for adapter in self.adapters.values()]
        before = torch.cat(gates)  # one operation per gate vector would cost more to launch than to compute
        if self.budget is None:
            after = proximal(before, threshold, self.profile)
        else:
            before = before.cpu()  # the budget is applied on the host, after one transfer
            after = proximal(before, threshold, self.profile)
            after = torch.where(self._largest(before, self.budget) & (after == 0), before, after)
            after.masked_fill_(~self._largest(after, self._curve(step.total, step.index - 1)), 0.0)
        self._zeroed = self._zeroed | (after == 0).any()
        sizes = [len(gate) for gate in gates]
        torch._foreach_copy_(gates, list(after.to(gates[0].device).split(sizes)))

    def is_final_form(self, step: Step) -> bool:
        if self.budget is not None and step.index < step.total - self.final_steps:
            return False
        return self._stage(step.index - 1) == len(self._thresholds) - 1

    def on_train_end(self, step: Step) -> None:
        if not self._zeroed:
            log.warning("%s: no gate ever reached zero, so no rank was removed; raise threshold or l1", self.name)
        for adapter in self.adapters.values():
            if adapter.open < len(adapter.gate):
                adapter.keep(adapter.gate.detach().nonzero().flatten(), step.optimizer)
        if self.budget is not None:
            Budget.of(self.budget, 0).refuse_missed(self.adapters.values())

    def _curve(self, total: int, t: int) -> int:
        """Return the parameters that the open gates may cost after step t, counted from 0."""
        assert self.budget is not None
        # If the run starts from a finished one, its gates may cost less than the budget.
        start = max(self.budget, sum(adapter.closed_form() for adapter in self.adapters.values()))
        return Cubic(start, self.budget, total - 1, self.initial_steps, self.final_steps, 1).at(t)[0]

    def _largest(self, gates: torch.Tensor, budget: int) -> torch.Tensor:
        """Return a mask (n,) of all layers' `gates` (n,): the largest |g| that fit into `budget`."""
        adapters = list(self.adapters.values())
        sizes = [len(adapter.gate) for adapter in adapters]
        kept = within(gates.abs().split(sizes), [adapter.cost for adapter in adapters], budget)
        return torch.cat(masks(kept, sizes, gates.device))

    def state_dict(self) -> dict[str, Any]:
        gates = {name: len(adapter.gate) for name, adapter in self.adapters.items()}
        return {"gates": gates, "zeroed": bool(self._zeroed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # Restoring an earlier checkpoint does not undo that some gate was zero.
        self._zeroed, self._steps = bool(self._zeroed) or state["zeroed"], None
        for name, adapter in self.adapters.items():
            saved, current = state["gates"][name], len(adapter.gate)
            if saved > current:
                raise ValueError(f"{name}: rank {current}, allowed: at least the {saved} of the saved state")
            if saved < current:
                adapter.keep(torch.arange(saved), None)

    def _check_size(self, layer: nn.Module) -> None:
        # The released code accepts any number of gates; more than the layer's size can't increase its rank.
        if self.profile == "paper":
            check_rank(self.rank, layer)

    def _begin(self, stage: int) -> int:
        """Return the number of steps before `stage`."""
        if stage == 0:
            return 0
        assert self.stage_steps is not None
        return (self.first_stage_steps or self.stage_steps) + (stage - 1) * self.stage_steps

    def _stage(self, t: int) -> int:
        """Return the stage of step t, counted from 0."""
        return max(stage for stage in range(len(self._thresholds)) if self._begin(stage) <= t)

    def _decay(self, optimizer: torch.optim.Optimizer) -> None:
        matrices = set(map(id, self._matrices()))
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) in matrices:
                    parameter.mul_(1 - group["lr"] * self.decay_after_step)
