"""LoRA: low-rank adaptation with a fixed rank.

    y = W x + (α/r) B A dropout(x)          A: r×in, kaiming-uniform(√5)    B: out×r, zero

Paper     Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685.
Code      microsoft/LoRA c4593f0, which initialises as above; the paper draws A from a normal distribution.
rsLoRA    Kalajdzievski 2023, arXiv 2312.03732: scaling α/√r, so that gradients stay stable at large ranks.
LoRA+     Hayou et al. 2024, arXiv 2402.12354: B learns `lr_ratio` times as fast as A.

Other initialisations (`init`) take A₀ and B₀ from W and train from there, with W − s B₀A₀ as the frozen part:

    pissa    U S Vᵀ = W, the r largest:   B₀ = U_r √(S_r/s)    A₀ = √(S_r/s) V_rᵀ
    milora   the same of the r smallest singular values
    olora    Q R = W:                     B₀ = Q_r             A₀ = R_r (the first r columns, rows)

PiSSA     Meng et al. 2024, NeurIPS, arXiv 2404.02948; code MuLabPKU/PiSSA 87f4db6, and PEFT's.
MiLoRA    Wang et al. 2024, arXiv 2406.09044; it uses α = r.
OLoRA     Büyükakyüz 2024, arXiv 2406.01775; code: PEFT's.

Here W is not overwritten: the layer computes W x + s (B A − B₀ A₀) x, the same function. The start is the base model
bit for bit also in half precision (where a residual would be rounded), and `disabled()` restores W. The update
ΔW = s (B A − B₀ A₀) has rank 2r; `rank` reports this rank and an export writes it. Dropout would act on B A but not on
B₀ A₀, so it is refused.

LoRA-FA   Zhang et al. 2023, arXiv 2308.03303 (`frozen_a: true`, variant=lora_fa): A keeps its initial values, only B
          is trained. ∂L/∂B = s ∂y (A x)ᵀ needs only A x, r numbers for each token, so x (`in` numbers) is not
          saved for the backward pass; what dropout needs is saved. For layers that are not matrix products
          (convolutions) torch saves x anyway. The paper measured LoRA's accuracy with up to 1.4 times less memory.
          It has half the parameters of LoRA at the same rank, so about twice the rank at the same budget.

Controls  `ranks_from` gives every layer the rank that another method found, a rank of 0 included, and trains LoRA anew:
          what is left of that method's lead is not due to its allocation alone. The scaling is that of the average
          rank in all layers, so that it does not change with a layer's share. With `permute_seed` the ranks are
          permuted among layers of the same size, so that the number of parameters stays the same.
Budget    `budget` replaces rank and rank_pattern: ranks as even as integers allow. With frozen A a rank costs `out`.
Family    low rank
Trains    A and B
Changes   nothing
Checked   released code: test_lora test_trajectory_of_the_official_code; PEFT: test_lora test_trajectory_of_peft,
          test_lora_starts test_trajectory_of_peft; stored run of PEFT's PiSSA: test_lora_starts
          test_every_number_of_a_pissa_run
Hooks     none: only the parameters change in training.
Cost      r(in + out) parameters and two products of that size in each adapted layer; twice the products
          and r(in + out) frozen numbers if `init` is not lora. With `frozen_a: true` r·out parameters, and r·in
          frozen numbers, which are saved with them.
Decay     A and B decay, as in the released code. If `init` is not lora, the decay pulls A and B towards zero, not
          towards A₀ and B₀, as in PEFT.
Known     The released GLUE numbers adapt query and value only, and start MRPC, RTE and STS-B from an MNLI checkpoint;
          methods that don't are not comparable. PiSSA is better than LoRA in its own paper and worse under a
          validation/test protocol (PSOFT, ICLR 2026: 86.24 to 87.30).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import field_checks, layers, target_modules
from variants.core.adapters.adapter import LowRank, check_rank
from variants.core.adapters.from_start import FromStart
from variants.core.allocation import budget
from variants.core.decompositions import decompose
from variants.core.variant import AdapterVariant, pattern_value

log = logging.getLogger(__name__)

SCALINGS = {
    "lora": lambda alpha, rank: alpha / rank,
    "rslora": lambda alpha, rank: alpha / math.sqrt(rank),
}
INITS = ("lora", "pissa", "milora", "olora")


class FrozenA(LowRank):
    """ΔW = scale · B A with A frozen at its initial values; the layer's input is not saved for the gradient of B."""

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float) -> None:
        super().__init__(base, rank, scale, dropout)
        self.A.requires_grad_(False)

    @property
    def cost(self) -> int:
        return self.out_features


@dataclass(kw_only=True)
class LoRA(AdapterVariant):
    """Fixed-rank LoRA.

    rank: of every adapted layer. alpha: numerator of the scaling. dropout: on the adapter's input.
    scaling: "lora" (α/r) or "rslora" (α/√r). lr_ratio: learning rate of B over that of A (LoRA+).
    frozen_a: whether A keeps its initial values (LoRA-FA).
    rank_pattern, alpha_pattern: values for the layers whose names end in a key.
    init: "lora", or how A and B are computed from W: "pissa", "milora", "olora".
    init_iterations: of a randomised SVD (pissa); null for the exact SVD.
    ranks_from: rank of every adapted layer by its whole name, in place of rank, rank_pattern and budget. In a config:
        the folder of a finished run, or settings of a run, whose ranks are taken (`trainer.sweeps.found_ranks`).
    permute_seed: of a permutation of these ranks among layers of the same size; null for none.
    budget: trained parameters at the end, in place of rank and rank_pattern (`variants.core.allocation.budget`).
    """

    name: str = "lora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    scaling: str = "lora"
    lr_ratio: float = 1.0
    frozen_a: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    init: str = "lora"
    init_iterations: int | None = None
    ranks_from: Mapping[str, int] | None = None
    permute_seed: int | None = None
    budget: int | None = None

    adapters: dict[str, LowRank] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank")
        field_checks.check_positive(self, "alpha")
        for rank in self.rank_pattern.values():
            field_checks.check("rank_pattern", rank, rank >= 1, "a whole number ≥ 1")
        for alpha in self.alpha_pattern.values():
            field_checks.check("alpha_pattern", alpha, alpha > 0, "a number > 0")
        field_checks.check_fraction(self, "dropout")
        field_checks.check_positive(self, "lr_ratio")
        field_checks.check_one_of(self, "scaling", tuple(SCALINGS))
        field_checks.check_one_of(self, "init", INITS)
        if self.init != "lora" and self.dropout:
            raise ValueError(
                f"dropout: {self.dropout} with init: {self.init}, allowed: 0; dropout would act on B A but not on B₀ A₀"
            )
        if self.frozen_a:
            field_checks.check_without_effect(self, "lr_ratio", "frozen_a: true")
            if self.init != "lora":
                raise ValueError(f"frozen_a: true with init: {self.init}, allowed: false; its A₀ comes from W")
        if self.init_iterations is not None:
            if self.init != "pissa":
                raise ValueError(f"init_iterations: {self.init_iterations} with init: {self.init}, allowed: null")
            field_checks.check_int(self, "init_iterations")
        field_checks.check_budget(self, "rank", "rank_pattern")
        self._check_ranks_from()
        self._ranks: dict[str, int] = {}

    def _check_ranks_from(self) -> None:
        if self.ranks_from is None:
            if self.permute_seed is not None:
                raise ValueError(f"permute_seed: {self.permute_seed} without ranks_from, allowed: null")
            return
        for name in ("rank", "rank_pattern", "budget", "init"):
            field = type(self).__dataclass_fields__[name]
            value, default = getattr(self, name), {} if name == "rank_pattern" else field.default
            if value != default:
                raise ValueError(f"{name}: {value!r} with ranks_from, allowed: {default}; that run decides the ranks")
        for name, rank in self.ranks_from.items():
            field_checks.check("ranks_from", rank, rank >= 0, f"a whole number ≥ 0 for {name}")
        if not any(self.ranks_from.values()):
            raise ValueError("ranks_from: all ranks are 0, allowed: some that are not")
        if self.permute_seed is not None:
            field_checks.check_int(self, "permute_seed", at_least=0)

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {"rank": 2},
            {"rank": 1, "dropout": 0.1, "lr_ratio": 4.0},
            {"rank": 4, "scaling": "rslora", "rank_pattern": {"fc1": 2}, "alpha_pattern": {"fc2": 3.0}},
            {"budget": 150},
            {"rank": 2, "init": "pissa"},
            {"rank": 2, "init": "pissa", "init_iterations": 4, "alpha": 3.0},
            {"rank": 3, "init": "milora", "alpha": 3.0},
            {"rank": 2, "init": "olora", "scaling": "rslora"},
            {"rank": 2, "frozen_a": True},
            {"budget": 101, "frozen_a": True, "dropout": 0.1},
            {"ranks_from": {"layer.0.fc1": 3, "layer.0.fc2": 0, "layer.1.fc1": 1, "layer.1.fc2": 2}},
            {"ranks_from": {"layer.0.fc1": 3, "layer.0.fc2": 1, "layer.1.fc1": 1, "layer.1.fc2": 2}, "permute_seed": 1},
        ]

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        selected = self.select(model, head)
        for field_name, patterns in [("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)]:
            for pattern in patterns:
                if not any(target_modules.matches(name, pattern) for name in selected):
                    raise ValueError(f"{field_name}: no adapted layer ends in {pattern!r}")
        if self.budget is not None:
            sizes = {name: layers.size(layer) for name, layer in selected.items()}
            costs = {name: out + (0 if self.frozen_a else inner) for name, (out, inner) in sizes.items()}
            self._ranks = budget.spread(costs, self.budget, {name: min(size) for name, size in sizes.items()})
            return
        if self.ranks_from is not None:
            self._ranks = self._found(selected)
            return
        self._ranks = {name: pattern_value(self.rank_pattern, name, self.rank) for name in selected}
        for name, layer in selected.items():
            check_rank(self._ranks[name], layer)

    def _found(self, selected: Mapping[str, nn.Module]) -> dict[str, int]:
        """Return `ranks_from`, permuted if asked, for the layers `selected`, whose names must be the same."""
        assert self.ranks_from is not None
        if other := sorted(selected.keys() ^ self.ranks_from.keys()):
            where = "in that run alone" if other[0] in self.ranks_from else "in this one alone"
            raise ValueError(f"ranks_from: {other[0]} is adapted {where}, allowed: the same layers; set targets")
        ranks = {name: self.ranks_from[name] for name in selected}
        for name, rank in ranks.items():
            if rank:
                check_rank(rank, selected[name])
        if self.permute_seed is None:
            return ranks
        permuted = permuted_ranks(
            ranks, {name: layers.size(layer) for name, layer in selected.items()}, self.permute_seed
        )
        if permuted == ranks:
            log.warning("%s: layers of the same size have the same rank: permute_seed changes nothing", self.name)
        return permuted

    def build(self, name: str, layer: nn.Module) -> LowRank:
        rank = self._ranks[name]
        of_scale = rank if self.ranks_from is None else sum(self._ranks.values()) / len(self._ranks)
        scale = SCALINGS[self.scaling](pattern_value(self.alpha_pattern, name, self.alpha), of_scale)
        if self.init == "lora":
            kind = FrozenA if self.frozen_a else LowRank
            return kind(layer, rank, scale, self.dropout)
        return FromStart(layer, scale, *self._start(layer, rank, scale))

    def _start(self, layer: nn.Module, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A₀ (r, in) and B₀ (out, r)."""
        weight = layers.matrix(layer).detach()
        if self.init == "olora":
            q, r = torch.linalg.qr(weight.to(torch.promote_types(weight.dtype, torch.float32)))
            return r[:rank], q[:, :rank]
        if self.init == "milora":
            basis = decompose(weight)
            u, s, vh = basis.U[:, -rank:], basis.s[-rank:], basis.Vh[-rank:]
        else:
            method = "svd" if self.init_iterations is None else "randomized_svd"
            basis = decompose(weight, method, rank, iterations=self.init_iterations)
            u, s, vh = basis.U, basis.s, basis.Vh
        root = (s / scale).sqrt()
        return root[:, None] * vh, u * root

    def state_dict(self) -> dict[str, Any]:
        # A₀ and B₀ are saved because a decomposition on another machine may differ in signs and rounding, the frozen A
        # because it is random.
        starts = {n: {"A": a.A0, "B": a.B0} for n, a in self.adapters.items() if isinstance(a, FromStart)}
        frozen = {n: {"A": a.A.detach()} for n, a in self.adapters.items() if isinstance(a, FrozenA)}
        return {key: tensors for key, tensors in (("start", starts), ("frozen", frozen)) if tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if ("frozen" in state) != self.frozen_a:
            current, saved = ("true", "false") if self.frozen_a else ("false", "true")
            raise ValueError(f"frozen_a: {current}, the saved state was trained with {saved}")
        if set(state) != set(self.state_dict()):
            raise ValueError(f"init: {self.init}, the saved state was trained from another start")
        for name, start in state.get("start", {}).items():
            adapter = self.adapters[name]
            assert isinstance(adapter, FromStart)
            adapter.set_start(start["A"], start["B"])
        for name, factors in state.get("frozen", {}).items():
            with torch.no_grad():
                self.adapters[name].A.copy_(factors["A"])

    def optimizer_options(self, name: str) -> Mapping[str, Any]:
        is_b = name.endswith(".B")
        return {"lr_scale": self.lr_ratio} if is_b and self.lr_ratio != 1.0 else {}


def permuted_ranks(ranks: Mapping[str, int], sizes: Mapping[str, tuple[int, int]], seed: int) -> dict[str, int]:
    """Return `ranks`, permuted among the layers of each size; not as they were, unless all orders are alike."""
    by_size: dict[tuple[int, int], list[str]] = {}
    for name in ranks:
        by_size.setdefault(sizes[name], []).append(name)
    drawing = torch.Generator("cpu").manual_seed(seed)
    result = dict(ranks)
    differs = any(len({ranks[name] for name in names}) > 1 for names in by_size.values())
    while result == ranks and differs:
        for names in by_size.values():
            order = torch.randperm(len(names), generator=drawing, device="cpu").tolist()
            result |= {name: ranks[names[i]] for name, i in zip(names, order, strict=True)}
    return result
