"""EVA: LoRA whose A is the leading principal components of a layer's inputs, and whose ranks follow the variance.

    y = W x + s B A x            A: the r leading components of x (r×in)        B: out×r, zero
    before training: incremental PCA of every layer's inputs, k = ρ `rank` components a layer, over the first `batches`
    batches again and again; after each, the components of all layers with the largest explained variance ratio are
    taken, as many as the budget allows, and their number in a layer is its rank
    a component has converged if its cosine with itself one pass ago is at least τ; it ends when those taken have

Paper     Paischer et al. 2025, "Parameter Efficient Fine-tuning via Explained Variance Adaptation", NeurIPS,
          arXiv 2410.07170.
Code      PEFT 0.21.2, tuners/lora/eva.py, with its IncrementalPCA (randomised, seed 42).
Budget    `budget` replaces rank: the components with the largest ratios that fit, exact to less than a rank.
          `rank` counts ranks, as in the paper: `rank` times the number of layers.
Family    adaptive ranks
Trains    A and B
Changes   ranks: chosen once, before training
Checked   PEFT: test_eva test_every_number_of_peft
Hooks     before_training  the passes; sets ranks and A
Passes    320 steps forward before training at most (`passes`), over the rows of 32 (`batches`)
Cost      forward passes before training until the components have converged, at most `passes`, and a decomposition of
          (tokens + k)×in for every distinct input in each; then r(in + out) parameters per layer, as LoRA.
Decay     A and B decay.
Known     A layer may end with rank 0, and is then plain. Layers with the same input, such as query and value, have the
          same components; of equal ratios the first layer comes first (PEFT decides in another order). Conv1d, Conv2d,
          Conv2d in groups and Embedding are refused: their inputs are no vectors. Padding takes no part, nor do places
          without a label in a language model. PEFT goes on until all has converged; here `passes` ends it, and
          `report` says how many components had not.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import field_checks, layers
from variants.core.adapters.adapter import LowRank, check_rank
from variants.core.allocation.budget import check_range, spread, within
from variants.core.passes import Passes
from variants.core.variant import AdapterVariant


class Components:
    """The principal components of one input. k: their number. tau: cosine from which one has converged."""

    def __init__(self, k: int, width: int, tau: float) -> None:
        from peft.utils.incremental_pca import IncrementalPCA  # here, because PEFT takes seconds to import

        self.k, self.tau = k, tau
        self.randomised = 2 * k <= width  # what torch's randomised decomposition can do
        self.pca: Any = IncrementalPCA(k, lowrank=self.randomised, lowrank_seed=42)
        self.converged = torch.zeros(k, dtype=torch.bool)

    @property
    def begun(self) -> bool:
        return hasattr(self.pca, "components_")

    def update(self, inputs: torch.Tensor) -> None:
        """Take in the inputs (tokens, in) of a batch; too few are left out."""
        if len(inputs) < (2 if self.randomised and not self.begun else 1) * self.k:
            return
        before = self.pca.components_.clone() if self.begun else None
        self.pca.partial_fit(inputs)
        if before is not None:
            self.converged = torch.nn.functional.cosine_similarity(self.pca.components_, before) >= self.tau

    def ready(self, rank: int) -> bool:
        return bool(self.converged[:rank].all())


@dataclass(kw_only=True)
class EVA(AdapterVariant):
    """EVA.

    rank: mean over the layers. rho: ρ; 1 leaves every rank at `rank`, and sets the start alone.
    alpha, dropout: as in LoRA. scale_with_rank: a layer's α grows with its rank, so that s = α/`rank` everywhere.
    whiten: divide each component by the root of its singular value. tau: τ.
    batches: of a step each, over which the passes go again and again. passes: at most.
    budget: trained parameters, in place of rank (`variants.core.allocation.budget`).
    """

    name: str = "eva"
    rank: int = 8
    rho: float = 2.0
    alpha: float = 16.0
    dropout: float = 0.0
    scale_with_rank: bool = True
    whiten: bool = False
    tau: float = 0.99
    batches: int = 32
    passes: int = 320
    budget: int | None = None

    adapters: dict[str, LowRank] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank", "batches")
        field_checks.check_int(self, "passes", at_least=2)
        field_checks.check_positive(self, "alpha")
        field_checks.check_fraction(self, "dropout", "tau")
        field_checks.check("rho", self.rho, self.rho >= 1, "a number ≥ 1")
        field_checks.check_budget(self, "rank")
        self._start: dict[str, int] = {}  # ranks until the passes decide
        self._k: dict[str, int] = {}  # components of a layer
        self._unready = 0  # layers whose components had not converged

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        return [
            {"rank": 2, "batches": 2},
            {"rank": 3, "rho": 1.0, "scale_with_rank": False, "whiten": True, "dropout": 0.1},
            {"budget": 131, "batches": 2, "passes": 3},
        ]

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        selected = self.select(model, head)
        for name, layer in selected.items():
            if not layers.is_linear(layer):
                kind = type(layer).__name__
                raise ValueError(f"targets: {name} is a {kind}, allowed: Linear, Conv1D; its inputs are no vectors")
        sizes = {name: layers.size(layer) for name, layer in selected.items()}
        most = {name: min(size) for name, size in sizes.items()}
        if self.budget is None:
            self._start = dict.fromkeys(selected, self.rank)
            for layer in selected.values():
                check_rank(self.rank, layer)
        else:
            costs = {name: sum(size) for name, size in sizes.items()}
            check_range(self.budget, min(costs.values()), sum(costs[name] * most[name] for name in costs))
            lowest = sum(costs.values())
            self._start = spread(costs, max(self.budget, lowest), most)
        self._k = {name: min(round(rank * self.rho), most[name]) for name, rank in self._start.items()}
        if self.budget is not None:
            offered = sum(sum(sizes[name]) * k for name, k in self._k.items())
            if offered < self.budget:
                raise ValueError(
                    f"rho: {self.rho} offers {offered} parameters with budget: {self.budget}, allowed: more"
                )

    def build(self, name: str, layer: nn.Module) -> LowRank:
        return LowRank(layer, self._start[name], self._scale(name, self._start[name]), self.dropout)

    def _scale(self, name: str, rank: int) -> float:
        return self.alpha / (self._start[name] if self.scale_with_rank else max(rank, 1))

    @torch.no_grad()
    def before_training(self, passes: Passes[Any]) -> None:
        names = list(self.adapters)
        first, ranks = True, dict(self._k)
        found: dict[str, Components] = {}
        shared = {name: name for name in names}  # by layer the first one with the same input
        for batch in self._cycled(passes):
            waiting = [name for name in names if first or not found[shared[name]].ready(ranks[name])]
            if not waiting or passes.count >= self.passes:
                break
            asked = dict.fromkeys(shared[name] for name in waiting)
            inputs = passes.inputs({name: self.adapters[name] for name in asked}, batch)
            if first:
                shared = _alike(inputs, self._k)
                found = {
                    name: Components(self._k[name], inputs[name].shape[1], self.tau)
                    for name in dict.fromkeys(shared.values())
                }
                first = False
            for name in dict.fromkeys(shared[name] for name in asked):
                found[name].update(inputs[name])
            if all(components.begun for components in found.values()):
                ranks = self.ranks_for({name: found[shared[name]].pca.explained_variance_ratio_ for name in names})
        if not all(components.begun for components in found.values()):
            raise ValueError(f"batches: each has fewer tokens than the {max(self._k.values())} components ask for")
        self._unready = sum(not found[shared[name]].ready(ranks[name]) for name in names)
        for name, adapter in self.adapters.items():
            pca = found[shared[name]].pca
            a = pca.components_[: ranks[name]]
            if self.whiten:
                a = a / pca.singular_values_[: ranks[name], None].sqrt()
            adapter.reshape(ranks[name])
            adapter.scale = self._scale(name, ranks[name])
            adapter.A.copy_(a)

    def _cycled(self, passes: Passes[Any]) -> Any:
        """Yield the first `batches` batches without end."""
        return itertools.chain.from_iterable(passes.steps(self.batches) for _ in itertools.count())

    def ranks_for(self, ratios: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """Return the rank of every layer. ratios: (k,) explained variance ratios of its components."""
        if self.budget is None:
            prices, budget = [1] * len(ratios), self.rank * len(ratios)
        else:
            prices = [a.in_features + a.out_features for a in self.adapters.values()]
            budget = self.budget
        kept = within(list(ratios.values()), prices, budget)
        return {name: len(components) for name, components in zip(ratios, kept, strict=True)}

    def report(self) -> dict[str, float]:
        return {"layers_not_converged": self._unready}

    def state_dict(self) -> dict[str, Any]:
        return {"ranks": self.ranks(), "unready": self._unready}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._unready = state["unready"]
        for name, adapter in self.adapters.items():
            adapter.reshape(state["ranks"][name])
            adapter.scale = self._scale(name, state["ranks"][name])


def _alike(inputs: Mapping[str, torch.Tensor], k: Mapping[str, int]) -> dict[str, str]:
    """Return, for every layer, the first with the same input and as many components."""
    first: dict[str, str] = {}
    for name, x in inputs.items():
        same = (
            o for o in first.values() if k[o] == k[name] and inputs[o].shape == x.shape and torch.equal(inputs[o], x)
        )
        first[name] = next(same, name)
    return first
