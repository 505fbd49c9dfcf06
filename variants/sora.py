"""SoRA: sparse low-rank adaptation, whose gates a proximal step takes to exactly zero.

    y = W x + (α/r) B (g ∘ A dropout(x))    A: r×in, kaiming-uniform(√5)    B: out×r, zero    g: r (our e), N(0, 1)

    L + λ Σ|g| / n                          n: gate scalars over all layers
    g ← T_ξ(g)                              after every optimizer step; ξ is not multiplied by the learning rate

A gate at zero is not frozen: a step of its optimizer that outruns the proximal one brings it back.
What is zero after training leaves the model. `schedule` raises ξ in stages, as the paper's
sparsifying scheduler does: linear, log_linear (equal steps of e^ξ), exp_linear (equal steps of ln ξ).

Paper     Ding et al. 2023, "Sparse Low-rank Adaptation of Pre-trained Language Models", EMNLP,
          arXiv 2311.11696; T_ξ is its soft threshold, the scheduler its algorithm 1.
Code      TsinghuaC3I/SoRA c275ac2.
Hooks     penalty       the L1 term, scaled by λ
          on_gradients  eps of the optimizers (profile released)
          on_update     the proximal step; decay after the step, where asked for
          on_train_end  components whose gate is zero leave parameters, gradients and moments
Cost      r(in + out + 1) parameters of the initial rank throughout training; a few operations on r
          numbers per layer and step. Without `budget` λ and ξ decide what is left.
Decay     A and B decay, by the run's optimizer or by `decay_after_step`; gates never do.

Where paper and released code differ, `profile` chooses:

  | | paper (default) | released |
  |---|---|---|
  | T_ξ(g) | sign(g) · max(abs(g) − ξ, 0) | three statements in place, each on what the one before left: |
  | | | abs(g) > ξ shrinks by ξ, then abs(g) < ξ becomes 0 |
  | ξ < abs(g) < 2ξ | abs(g) − ξ | 0 |
  | abs(g) = ξ | 0 | survives unchanged |
  | r above min(in, out) | refused | accepted: more gates than the rank of ΔW can be |
  | optimizer of g | the run's, without decay | Adam(0.9, 0.999), ε = 10⁻⁶ added to √v before its bias correction |
  | optimizer of A, B | the run's | the run's ε added to √v before its bias correction, decay after the step |

We default to paper: the dead zone up to 2ξ comes from the order of the statements, not from the
method. `released` writes ε/√(1 − β₂ᵗ) into the groups before each step, which makes torch's AdamW take the
released step; so gates, and A and B, need groups of their own and an Adam. In the first steps that ε counts for much:
it is 32 times torch's at the first one and 10 times at the tenth.

The released decay is `decay_after_step`. Where A and B are given torch's decay in its place (`optim.weight_decay`
with `decay_after_step: 0`), the run is one of the released code with torch's AdamW as its main optimizer: ε of A and B
is torch's too, and a warning says so. Both ways are compared with stored runs or with the statements themselves.

What is as in the released code in both profiles: the L1 gradient and the proximal step act together.
What is as in the released code in neither:

  - Its head stays random: the names that it unfreezes do not match, so that pooler, classifier and
    layer norms are never trained. Here the head is trained.
  - Its parameter count takes 2 · hidden size off for each zero gate, which is wrong in feed-forward
    matrices, and leaves the gates out. Here counts are by real shapes.
  - Its later stages go on with a learning-rate schedule that has run out, so that gates there can
    only shrink. Here all stages lie within the run and its one schedule.

Budget    The method has none; `budget` adds one. The open gates may cost no more than a cubic curve says, from all
          of them after `initial_steps` to the budget `final_steps` before the end: the smallest |g| beyond it become
          zero. And the largest |g| that fill the budget are left as they are where T_ξ would close them. So λ and ξ
          shape what is left, and the count is given. Profile paper alone has it.

Known     While B is about zero only the L1 term acts on a gate, and Adam normalises it: about one learning
          rate per step, whatever λ is. λ matters against the task's gradient only. As the learning
          rate falls, nothing brings gates back, so most of the sparsity comes late. ξ is per step:
          a longer run is a sparser one.
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
from variants.core.allocation.budget import check_range, masks, within
from variants.core.allocation.schedule import Cubic
from variants.core.variant import AdapterVariant, Step

log = logging.getLogger(__name__)

PROFILES = ("paper", "released")
SCHEDULES = ("constant", "linear", "log_linear", "exp_linear")
GATE_BETAS, GATE_EPS = (0.9, 0.999), 1e-6  # of the released gate optimizer


def proximal(g: torch.Tensor, threshold: float, profile: str) -> torch.Tensor:
    """`g` after the proximal step with ξ = `threshold`; see the module's text for the profiles."""
    if profile == "paper":
        return F.softshrink(g, threshold)
    g = torch.where(g > threshold, g - threshold, g)
    g = torch.where(g < -threshold, g + threshold, g)
    return torch.where(g.abs() < threshold, 0.0, g)


def thresholds(schedule: str, first: float, last: float, stages: int) -> list[float]:
    """ξ of each stage, from `first` to `last`."""
    if schedule == "log_linear":
        return np.log(np.linspace(np.exp(first), np.exp(last), stages)).tolist()
    if schedule == "exp_linear":
        return np.exp(np.linspace(np.log(first), np.log(last), stages)).tolist()
    return np.linspace(first, last, stages).tolist()


class Gated(LowRank):
    """B diag(e) A with e as gate, of which there may be more than the layer has rows or columns.

    A component whose gate is zero does not act.
    """

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
        """Gates that are not zero."""
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
    l1: λ. threshold: ξ, that of the first stage where there is a schedule.
    schedule: "constant", or how ξ goes to `max_threshold` in `stages` values: "linear", "log_linear", "exp_linear".
    stage_steps: optimizer steps of a stage. first_stage_steps: of the first; null for as many.
        The last stage goes on to the end of the run, and is the one that may be handed over.
    gate_lr_scale: learning rate of the gates over the run's.
    decay_after_step: weight decay of A and B after the step, in place of the run's; 0 leaves it to the run.
    initial_steps, final_steps: with a budget, steps before the first gate has to close and with the final number.
    profile: "paper" or "released", see the module's text.
    budget: trained parameters at the end, in place of what λ and ξ leave (`variants.core.allocation.budget`).
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
        field_checks.one_of(self, "profile", PROFILES)
        field_checks.one_of(self, "schedule", SCHEDULES)
        field_checks.whole(self, "rank")
        field_checks.positive(self, "alpha", "gate_lr_scale")
        field_checks.not_negative(self, "l1", "threshold", "decay_after_step")
        field_checks.share(self, "dropout")
        self._thresholds = [float(self.threshold)]
        if self.schedule == "constant":
            for name in ("max_threshold", "stages", "stage_steps", "first_stage_steps"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: {getattr(self, name)!r}, allowed with schedule=constant: null")
        else:
            field_checks.whole(self, "stages", at_least=2)
            field_checks.whole(self, "stage_steps")
            if self.first_stage_steps is not None:
                field_checks.whole(self, "first_stage_steps")
            above = self.max_threshold is not None and self.max_threshold > self.threshold
            field_checks.check("max_threshold", self.max_threshold, above, f"a number > {self.threshold:g}")
            if self.schedule == "exp_linear" and not self.threshold:
                raise ValueError("threshold: 0, allowed with schedule=exp_linear: a number > 0; it takes its logarithm")
            assert self.max_threshold is not None and self.stages is not None
            self._thresholds = thresholds(self.schedule, self.threshold, self.max_threshold, self.stages)
        field_checks.budget(self)
        field_checks.whole(self, "initial_steps", "final_steps", at_least=0)
        if self.budget is None and (self.initial_steps or self.final_steps):
            name = "initial_steps" if self.initial_steps else "final_steps"
            raise ValueError(f"{name}: {getattr(self, name)}, allowed without a budget: 0; they time its curve")
        if self.budget is not None and self.profile == "released":
            raise ValueError(f"budget: {self.budget} with profile: released, allowed: null; that code has none")
        self._zeroed: bool | torch.Tensor = False  # whether any gate has ever been zero
        self._steps: int | None = None  # that the gates' optimizer has made (profile released)

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
        found = self.select(model, head)
        for layer in found.values():
            self._check_size(layer)
        if self.budget is not None:
            costs = [sum(layers.size(layer)) + 1 for layer in found.values()]
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
        # A finished adapter may have lost every gate, and the mean of none is not a number.
        return self.l1 * torch.cat(gates).abs().mean() if self.l1 and gates else None

    def on_gradients(self, step: Step) -> None:
        if self.profile != "released":
            return
        if not isinstance(step.optimizer, torch.optim.Adam):  # AdamW is one
            found = type(step.optimizer).__name__
            raise ValueError(f"profile: released with the optimizer {found}, allowed: Adam, AdamW")
        gates = [adapter.gate for adapter in self.adapters.values()]
        own = self._groups("gates", gates, step.optimizer)
        main = self._groups("A and B", self._matrices(), step.optimizer)
        if self._steps is None:  # once, for the optimizer may count on the device
            self._steps = max(int(step.optimizer.state.get(gate, {}).get("step", 0)) for gate in gates)
            if decay := max(group["weight_decay"] for group in main):
                log.warning(
                    "%s: profile: released with optim.weight_decay: %g has torch's AdamW move A and B; "
                    "decay_after_step=%g has the released code's",
                    *(self.name, decay, decay),
                )
        self._steps += 1  # as the optimizer counts: steps whose gradients were not finite are left out
        groups = [(GATE_EPS, group) for group in own]
        groups += [(step.optimizer.defaults["eps"], group) for group in main if not group["weight_decay"]]
        for eps, group in groups:
            group["eps"] = eps / math.sqrt(1 - group["betas"][1] ** self._steps)

    @staticmethod
    def _groups(what: str, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
        """The optimizer's groups that hold `parameters`, which `what` calls; an error where others are in them."""
        wanted = set(map(id, parameters))
        found = [group for group in optimizer.param_groups if wanted & set(map(id, group["params"]))]
        if any(set(map(id, group["params"])) - wanted for group in found):
            raise ValueError(f"profile: released with {what} in a group with others, allowed: optimizer_options kept")
        return found

    def _matrices(self) -> list[nn.Parameter]:
        return [parameter for adapter in self.adapters.values() for parameter in (adapter.A, adapter.B)]

    @torch.no_grad()
    def on_update(self, step: Step) -> None:
        if self.decay_after_step:
            self._decay(step.optimizer)
        threshold = self._thresholds[self._stage(step.index - 1)]
        gates = [adapter.gate.detach() for adapter in self.adapters.values()]
        before = torch.cat(gates)  # all together: alone each costs more to start than to compute
        if self.budget is None:
            after = proximal(before, threshold, self.profile)
        else:
            before = before.cpu()  # the budget is held on the host, with one reading
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
            found, slack = self.effective_parameters(), max(adapter.cost for adapter in self.adapters.values())
            if not self.budget - slack < found <= self.budget:
                raise RuntimeError(f"budget: {found} parameters are left, the budget is {self.budget}")

    def _curve(self, total: int, t: int) -> int:
        """Parameters that the open gates may cost after step t, counted from 0."""
        assert self.budget is not None
        # A finished run's gates, from which another starts, may cost less than the budget.
        start = max(self.budget, sum(adapter.closed_form() for adapter in self.adapters.values()))
        return Cubic(start, self.budget, total - 1, self.initial_steps, self.final_steps, 1).at(t)[0]

    def _largest(self, gates: torch.Tensor, budget: int) -> torch.Tensor:
        """Which of all layers' `gates` (n,) are among the largest |g| that `budget` pays for, (n,)."""
        adapters = list(self.adapters.values())
        sizes = [len(adapter.gate) for adapter in adapters]
        kept = within(gates.abs().split(sizes), [adapter.cost for adapter in adapters], budget)
        return torch.cat(masks(kept, sizes, gates.device))

    def state_dict(self) -> dict[str, Any]:
        gates = {name: len(adapter.gate) for name, adapter in self.adapters.items()}
        return {"gates": gates, "zeroed": bool(self._zeroed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # An earlier checkpoint that is taken up again does not undo that some gate was zero.
        self._zeroed, self._steps = bool(self._zeroed) or state["zeroed"], None
        for name, adapter in self.adapters.items():
            saved, here = state["gates"][name], len(adapter.gate)
            if saved > here:
                raise ValueError(f"{name}: rank {here}, allowed: at least the {saved} of the saved state")
            if saved < here:
                adapter.keep(torch.arange(saved), None)

    def _check_size(self, layer: nn.Module) -> None:
        # The released code takes any number of gates; more than the layer's size can't add to its rank.
        if self.profile == "paper":
            check_rank(self.rank, layer)

    def _begin(self, stage: int) -> int:
        """Steps of the run before `stage`."""
        if stage == 0:
            return 0
        assert self.stage_steps is not None
        return (self.first_stage_steps or self.stage_steps) + (stage - 1) * self.stage_steps

    def _stage(self, t: int) -> int:
        """The stage that step t belongs to, counted from 0."""
        return max(stage for stage in range(len(self._thresholds)) if self._begin(stage) <= t)

    def _decay(self, optimizer: torch.optim.Optimizer) -> None:
        matrices = set(map(id, self._matrices()))
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) in matrices:
                    parameter.mul_(1 - group["lr"] * self.decay_after_step)
