"""ElaLoRA: ranks are pruned and grown together, so that they move between layers under a constant budget.

    y = W x + s · P Λ Q dropout(x)        Q: r×in (our A), P: out×r (our B), N(0, 0.02²)    Λ: r (our e), zero
    s = α / (r + 10⁻⁵), with the initial rank r throughout        S_i and R(P, Q) as in AdaLoRA

    after step t, counted from 0, if tᵢ < t < T − t_f and ΔT divides t:
      pool      the min(k, r − 1) components with the lowest S_i of every layer: no layer loses its last component
      pruned    the b lowest of the pool
      grown     one component in the layer of each of the b highest of the pool
      b(t)      round(b₀ (1 − ((t − tᵢ)/(T − t_f − tᵢ))³)), or b₀ throughout
    a new component: p, q ~ N(0, I), minus their projection on the layer's others, normalised to length 1;
    λ = min(min_i |λ_i|, 10⁻¹³); its scores are zero, and the remaining components keep theirs

Paper     Chang et al. 2025, "ElaLoRA: Elastic & Learnable Low-Rank Adaptation for Efficient Model
          Fine-Tuning", arXiv 2504.00254.
Code      HuandongChang/ElaLoRA 3865a37; its scripts have k = 2, b₀ = 4 and r = 10, on QNLI 2.
Budget    `budget` counts parameters instead of ranks. The layers start with ranks as even as it allows. Freed
          parameters go to the layers of the pool's components, from the highest component to the lowest and
          repeatedly, one rank each while it fits: parameters never exceed the budget, and after every round no
          further rank of a layer in the pool fits. Two small ranks may thus replace one expensive rank; the sum of
          ranks is then not constant. Only profile paper supports it.
Family    adaptive ranks
Trains    A, B and e
Changes   ranks: moved between layers in training
Checked   written out: test_elalora test_its_trajectory_is_that_of_a_straight_implementation
Hooks     on_step_begin  sets the learning rate (profile released)
          penalty        R, scaled by γ
          on_update      updates the scores, from the step's gradients and the parameters after it; prunes and grows
          on_train_end   raises if no rank ever moved
Cost      r(in + out + 1) parameters for r ranks, and two averages of each until the final phase. Pruned components
          are removed with gradients and moments; grown ones are added.
Decay     P, Q and Λ decay, grown components too, as in AdaLoRA's code, whose trainer the released code uses.

Where the released code has an evident fault, `profile` chooses:

  | | paper (default) | released |
  |---|---|---|
  | p, q | orthogonal to the layer's others (QR) | v − Aᵀ(A v), orthogonal only if A has orthonormal rows |
  | moments | remaining components keep theirs | the whole optimizer state is lost in every round |
  | learning rate | follows the schedule | the base rate from the first round to the end |
  | R | sum of squares over modules | mean of norms, not squared |

The released code creates a new optimizer in every round and looks up the old states by `id()` although they are
numbered: when its functions were run, no state was found, and the learning rate went from 5e-4 to its base of 1e-3 and
stayed there, because the schedule still changed the old optimizer. The head's states are lost, too. With the AdamW of
current PyTorch, creating that optimizer raises a TypeError.

Differences from both
  At most half the pool is pruned, so that no component is on both sides. A layer with rank min(in, out) does not
  grow; the next one of the pool grows instead.

Known     A layer at rank 1 has no component in the pool, so it never grows again. A new component starts with score
          zero, so with a short interval it is pruned again. The first step of a new λ, whose moments start late in
          Adam's count, is up to (1 − β₁)/√(1 − β₂) ≈ 3 times the learning rate. ΔW has the reported ranks from the
          step after a round on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from variants.core import field_checks, layers
from variants.core.adapters import svd_triplets
from variants.core.adapters.adapter import check_rank
from variants.core.adapters.grow import hold_rate
from variants.core.adapters.svd_triplets import Triplets
from variants.core.allocation.allocators import Layers, Move
from variants.core.allocation.budget import Budget, spread
from variants.core.allocation.scores import SensitivityUncertainty
from variants.core.variant import AdapterVariant, Step

PROFILES = ("paper", "released")
NEW = 1e-13  # largest λ of a new component


@dataclass(kw_only=True)
class Constant(Move):
    """Exchanges as many components in every round."""

    def falling(self, progress: float) -> int:
        return self.exchange


MOVES: dict[str, type[Move]] = {"cubic": Move, "constant": Constant}


@dataclass(kw_only=True)
class ElaLoRA(AdapterVariant):
    """ElaLoRA.

    rank: of every layer at the start, and their average throughout. alpha, dropout: as in LoRA.
    orthogonality: γ. pool: k, components of a layer in the pool. exchange: b₀, components that are exchanged.
    schedule: "cubic" (b falls to zero) or "constant".
    initial_steps, final_steps, interval: tᵢ, t_f and ΔT, in optimizer steps.
    beta1, beta2: smoothing factors of sensitivity and uncertainty.
    profile: "paper" or "released", see the module's docstring.
    budget: trained parameters, in place of rank (`variants.core.allocation.budget`).
    """

    name: str = "elalora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    orthogonality: float = 0.1
    pool: int = 2
    exchange: int = 4
    schedule: str = "cubic"
    initial_steps: int = 0
    final_steps: int = 1
    interval: int = 10
    beta1: float = 0.85
    beta2: float = 0.85
    profile: str = "paper"
    budget: int | None = None

    adapters: dict[str, Triplets] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank", at_least=2)  # the last rank of a layer never moves
        field_checks.check_int(self, "pool", "exchange", "interval", "final_steps")
        field_checks.check_int(self, "initial_steps", at_least=0)
        field_checks.check_positive(self, "alpha")
        field_checks.check_not_negative(self, "orthogonality")
        field_checks.check_fraction(self, "dropout", "beta1", "beta2")
        field_checks.check_one_of(self, "schedule", tuple(MOVES))
        field_checks.check_one_of(self, "profile", PROFILES)
        field_checks.check_budget(self, "rank")
        if self.budget is not None and self.profile == "released":
            raise ValueError(f"budget: {self.budget} with profile: released, allowed: null; that code counts ranks")
        self._starts: dict[str, int] = {}  # initial ranks by layer
        schedule = {name: getattr(self, name) for name in ("initial_steps", "final_steps", "interval")}
        self._allocator = MOVES[self.schedule](pool=self.pool, exchange=self.exchange, **schedule)
        self._score = SensitivityUncertainty(beta1=self.beta1, beta2=self.beta2)
        self._rounds = 0  # rounds so far
        self._moved = 0  # ranks that have moved from one layer to another

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        steps = {"initial_steps": 1, "final_steps": 2, "interval": 3}
        return [
            {"rank": 4, "exchange": 2, **steps},
            {"rank": 3, "exchange": 3, "dropout": 0.1, "interval": 2, "final_steps": 3},
            {"rank": 4, "pool": 3, "exchange": 3, "schedule": "constant", **steps},
            {"rank": 4, "exchange": 2, "profile": "released", **steps},
            {"budget": 235, "exchange": 2, **steps},
        ]

    def plan(self, total_steps: int) -> None:
        self._allocator.plan(total_steps)

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        selected = self.select(model, head)
        sizes = {name: layers.size(layer) for name, layer in selected.items()}
        most = {name: min(size) for name, size in sizes.items()}
        if self.budget is None:
            self._starts = dict.fromkeys(selected, self.rank)
            for layer in selected.values():
                check_rank(self.rank, layer)
        else:
            self._starts = spread({name: sum(size) + 1 for name, size in sizes.items()}, self.budget, most)
        movable = [name for name, rank in self._starts.items() if rank > 1]
        if len(movable) < 2 or all(self._starts[name] == most[name] for name in movable):
            setting = f"rank: {self.rank}" if self.budget is None else f"budget: {self.budget}"
            raise ValueError(
                f"{setting} for {len(selected)} layers leaves no rank that can move, allowed: one with which two "
                "layers have rank 2 or more, and one of them less than its size allows"
            )

    def build(self, name: str, layer: nn.Module) -> Triplets:
        rank = self._starts[name]
        return Triplets(layer, rank, self.alpha / (rank + 1e-5), self.dropout)

    def penalty(self) -> torch.Tensor | None:
        if not self.orthogonality:
            return None
        regularizer = svd_triplets.orthogonality(((a.A, a.B) for a in self.adapters.values()), self.profile)
        return None if regularizer is None else self.orthogonality * regularizer

    def exchanged(self, t: int, total: int) -> int:
        """Return b(t), the components that are exchanged after step t, counted from 0; 0 if there is no round."""
        return self._allocator.exchanged(t, total)

    def on_step_begin(self, step: Step) -> None:
        if self.profile == "released":
            if not isinstance(step.scheduler, LambdaLR):
                kind = type(step.scheduler).__name__
                raise ValueError(f"optim.schedule: {kind} with profile: released can't be stopped, allowed: linear")
            if self._rounds:
                hold_rate(step.optimizer, step.scheduler)  # again, because a resumed run has a new schedule

    def on_update(self, step: Step) -> None:
        t = step.index - 1  # the method counts from 0
        if t >= step.total - self.final_steps:
            return
        self._score.update(self.adapters)
        if exchanged := self.exchanged(t, step.total):
            self._exchange(exchanged, step.optimizer)
            if self.profile == "released":
                step.optimizer.state.clear()
                assert isinstance(step.scheduler, LambdaLR)
                hold_rate(step.optimizer, step.scheduler)

    def is_final_form(self, step: Step) -> bool:
        return step.index - 1 >= step.total - self.final_steps

    def on_train_end(self, step: Step) -> None:
        if not self._moved:
            raise RuntimeError(f"rank: none has moved from one layer to another in {self._rounds} rounds")
        self._limit.refuse_missed(self.adapters.values())

    @property
    def _limit(self) -> Budget:
        return Budget.of(self.budget, self.rank * len(self.adapters))

    @property
    def target(self) -> int:
        """Sum of ranks, or of parameters if `budget` is given."""
        return self._limit.target

    def scores(self) -> dict[str, torch.Tensor]:
        """Return S (r,) of every layer's components."""
        return self._score.scores(self.adapters)

    def state_dict(self) -> dict[str, Any]:
        return {
            "ranks": self.ranks(),
            "importance": self._score.state_dict(),
            "rounds": self._rounds,
            "moved": self._moved,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._score.load_state_dict(state["importance"])
        self._rounds, self._moved = state["rounds"], state["moved"]
        for name, adapter in self.adapters.items():
            adapter.reshape(state["ranks"][name])

    def start_from(self, state: Mapping[str, Any]) -> None:
        self.load_state_dict(state)
        self._score, self._rounds = SensitivityUncertainty(beta1=self.beta1, beta2=self.beta2), 0

    def _exchange(self, count: int, optimizer: torch.optim.Optimizer) -> None:
        """Prune the `count` lowest components of the pool and grow the layers of its highest: one round."""
        most = {name: min(adapter.in_features, adapter.out_features) for name, adapter in self.adapters.items()}
        prices = {name: self._limit.price(adapter) for name, adapter in self.adapters.items()}
        now = Layers(self.ranks(), most, prices, self.target, self._limit)
        decision = self._allocator.exchange_of(count, self.scores(), now)
        for name, adapter in self.adapters.items():
            pruned, gained = adapter.rank - len(decision.kept[name]), decision.gained[name]
            if pruned:
                index = torch.tensor(list(decision.kept[name]), device=adapter.A.device)
                adapter.keep(index, optimizer)
                self._score.keep(name, index)
            if gained:
                self._append(name, gained, optimizer)
            self._moved += max(0, gained - pruned)
        self._rounds += 1

    @torch.no_grad()
    def _append(self, name: str, count: int, optimizer: torch.optim.Optimizer) -> None:
        adapter, exact = self.adapters[name], self.profile == "paper"
        a, b = directions(adapter.A, count, exact), directions(adapter.B.T, count, exact).T
        adapter.append(a, b, adapter.e.abs().min().clamp(max=NEW).repeat(count), optimizer)
        self._score.append(name, count)


@torch.no_grad()
def directions(rows: torch.Tensor, count: int, exact: bool) -> torch.Tensor:
    """Draw `count` new rows (count, n) of length 1, orthogonal to `rows` (r, n) and to each other.

    exact: by QR; otherwise v − Aᵀ(A v), where A is all rows so far.
    """
    drawn = torch.randn(count, rows.shape[1], dtype=rows.dtype).to(rows.device)
    if exact:
        q, r = torch.linalg.qr(torch.cat([rows, drawn]).T)
        return (q * r.diagonal().sign()).T[len(rows) :]
    basis = rows
    for v in drawn:
        v = v - basis.T @ (basis @ v)
        basis = torch.cat([basis, v[None] / v.norm()])
    return basis[len(rows) :]
