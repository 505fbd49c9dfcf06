"""AFLoRA: two random matrices between trained vectors; the matrices train first and are frozen one after the other.

    y = W x + b ∘ (B (d ∘ (A x)))        A: r×in, B: out×r, kaiming-uniform    d: (r,), 0.1    b: (out,), zero
    d and b train always; A and B of a square W never, of others until they are frozen
    w = mean over `interval` steps of abs(∂L/∂p);  Ī ← β₁ Ī + (1 − β₁) w;  Ū ← β₂ Ū + (1 − β₂) abs(w − Ī)
    every `interval` steps a matrix is frozen whose mean score Ī Ū is below the quantile 1 − ρ of all entries' scores
    ρ falls from 1 after `initial_steps` along a cubic curve to 0 at `final_steps` before the end

Paper     Liu et al. 2024, "AFLoRA: Adaptive Freezing of Low Rank Adaptation in Parameter Efficient Fine-Tuning of Large
          Models", ACL, arXiv 2403.13269. With all matrices frozen the form is that of VeRA (Kopiczko et al. 2024, arXiv
          2310.11454), with matrices of each layer's own; PEFT's `vera` shares them.
Code      zeyuliu1037/AFLoRA 23f632f, glue/ (mode elora). Its sensitivity has the sign of p inside the absolute value,
          so it is abs of the gradient. A matrix frozen in a step is updated in it for the last time.
Budget    `budget` replaces rank: trained parameters at the end, r + out per layer.
Family    low rank
Trains    d and b, and A and B until they are frozen
Changes   what trains: matrices are frozen one after the other in training
Checked   released code: test_aflora test_every_number_of_the_released_code
Hooks     on_gradients   scores and freezes, by gradients before they are clipped
          on_train_end   raises if a matrix is not frozen
Cost      r + out parameters per layer, and r(in + out) of those that are not square until they are frozen, with a copy
          of their gradients and three averages. Frozen matrices are saved with the adapter.
Decay     all decay while they train, as in the released code.
Known     Means of matrices are compared with a quantile of entries, and the pool shrinks as matrices are frozen while
          ρ does not: skewed scores freeze late. The paper's number of parameters is an average over time; here
          `params` has those at the start and at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from variants.core import collectives, field_checks, layers
from variants.core.adapters.adapter import Factored, check_rank
from variants.core.allocation.budget import spread_priced
from variants.core.allocation.schedule import check_fits
from variants.core.variant import AdapterVariant, Step

MATRICES = ("A", "B")


class Vectors(Factored):
    """ΔW = diag(b) B diag(d) A, with trained d (r,) and b (out,); A (r, in) and B (out, r) train until `freeze`."""

    scale = 1.0

    def __init__(self, base: nn.Module, rank: int) -> None:
        super().__init__(base)
        device, dtype = self.weight.device, torch.promote_types(self.weight.dtype, torch.float32)
        self.A = nn.Parameter(torch.empty((rank, self.in_features), device=device, dtype=dtype))
        self.B = nn.Parameter(torch.empty((self.out_features, rank), device=device, dtype=dtype))
        self.d = nn.Parameter(torch.full((rank,), 0.1, device=device, dtype=dtype))
        self.b = nn.Parameter(torch.zeros(self.out_features, device=device, dtype=dtype))
        self.unclipped: dict[str, torch.Tensor] = {}  # gradients of A and B in this step, in this process
        for name in MATRICES:
            matrix = self.get_parameter(name)
            nn.init.kaiming_uniform_(matrix)
            matrix.register_post_accumulate_grad_hook(lambda p, name=name: self._keep(name, p))
            matrix.requires_grad_(self.in_features != self.out_features)

    def _keep(self, name: str, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        self.unclipped[name] = parameter.grad.detach().clone()

    def factors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.A, self.B * self.b[:, None], self.d

    @property
    def trained(self) -> list[str]:
        """The matrices that are trained."""
        return [name for name in MATRICES if self.get_parameter(name).requires_grad]

    def train_matrices(self, names: Sequence[str]) -> None:
        """Train the matrices `names` and freeze the others."""
        for name in MATRICES:
            self.get_parameter(name).requires_grad_(name in names)

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    def closed_form(self) -> int:
        size = {"A": self.in_features, "B": self.out_features}
        return self.rank * (1 + sum(size[name] for name in self.trained)) + self.out_features


@dataclass(kw_only=True)
class AFLoRA(AdapterVariant):
    """AFLoRA.

    rank: r of every layer. initial_steps, final_steps, interval: optimizer steps before the first freezing, with all
    frozen, and between two freezings. beta1, beta2: smoothing factors of sensitivity and uncertainty.
    budget: trained parameters at the end, in place of rank (`variants.core.allocation.budget`).
    """

    name: str = "aflora"
    rank: int = 4
    initial_steps: int = 100
    final_steps: int = 100
    interval: int = 10
    beta1: float = 0.85
    beta2: float = 0.95
    budget: int | None = None

    adapters: dict[str, Vectors] = field(init=False, repr=False, compare=False, default_factory=dict)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        field_checks.check_int(self, "rank", "initial_steps", "interval")
        field_checks.check_int(self, "final_steps", at_least=2)  # all are frozen in the second of them at the latest
        field_checks.check_fraction(self, "beta1", "beta2")
        field_checks.check_budget(self, "rank")
        self._ranks: dict[str, int] = {}
        self._window: dict[str, torch.Tensor] = {}  # w by "layer.matrix", of those that are trained or were
        self._mean: dict[str, torch.Tensor] = {}  # Ī
        self._uncertainty: dict[str, torch.Tensor] = {}  # Ū

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        steps = {"initial_steps": 2, "final_steps": 4, "interval": 2}
        return [
            {"rank": 2, **steps},
            {"rank": 3, "initial_steps": 3, "final_steps": 2, "interval": 3, "beta2": 0.9},
            {"budget": 60, **steps},
        ]

    def plan(self, total_steps: int) -> None:
        check_fits(self.initial_steps, self.final_steps, total_steps)

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        sizes = {name: layers.size(layer) for name, layer in self.select(model, head).items()}
        if self.budget is not None:
            most = {name: min(size) for name, size in sizes.items()}
            self._ranks = spread_priced(lambda name, rank: rank + sizes[name][0], self.budget, most)
            return
        self._ranks = dict.fromkeys(sizes, self.rank)
        for layer in self.select(model, head).values():
            check_rank(self.rank, layer)

    def build(self, name: str, layer: nn.Module) -> Vectors:
        return Vectors(layer, self._ranks[name])

    def keeps(self, t: int, total: int) -> tuple[float, bool]:
        """Return ρ at step t, counted from 0, and whether matrices may be frozen in it."""
        if t <= self.initial_steps:
            return 1.0, False
        if t > total - self.final_steps:
            return 0.0, True
        progress = (t - self.initial_steps) / (total - self.initial_steps - self.final_steps)
        return (1 - progress) ** 3, t % self.interval == 0

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the matrices that are trained, by "layer.matrix"."""
        return {f"{name}.{m}": a.get_parameter(m) for name, a in self.adapters.items() for m in a.trained}

    @torch.no_grad()
    def on_gradients(self, step: Step) -> None:
        t, trained = step.index - 1, self.trained()
        for name, parameter in trained.items():
            layer, _, matrix = name.rpartition(".")
            gradient = collectives.all_reduce_sum(self.adapters[layer].unclipped[matrix])
            self._score(name, (parameter.sign() * gradient).abs(), t % self.interval)
        keeps, freezes = self.keeps(t, step.total)
        if freezes and trained:
            self._freeze(list(trained), keeps)

    def _score(self, name: str, now: torch.Tensor, place: int) -> None:
        """Update the averages of one matrix with its sensitivity `now`. place: of the step in its window."""
        if name not in self._window:
            for average in (self._window, self._mean, self._uncertainty):
                average[name] = torch.zeros_like(now)
        window = self._window[name]
        if place:
            self._window[name] = (window * place + now) / (place + 1)
            return
        self._mean[name] = mean = self.beta1 * self._mean[name] + (1 - self.beta1) * window
        self._uncertainty[name] = self.beta2 * self._uncertainty[name] + (1 - self.beta2) * (window - mean).abs()
        self._window[name] = now

    def _freeze(self, names: list[str], keeps: float) -> None:
        scores = {name: self._mean[name] * self._uncertainty[name] for name in names}
        together = torch.cat([score.flatten() for score in scores.values()])
        if not together.isfinite().all():
            raise ValueError("importance: a gradient was not finite")
        place = int(len(together) * (1 - keeps))
        if not place:
            return
        threshold = together.kthvalue(place).values
        below = torch.stack([score.mean() < threshold for score in scores.values()]).tolist()
        for name, frozen in zip(names, below, strict=True):
            if frozen:
                layer, _, matrix = name.rpartition(".")
                adapter = self.adapters[layer]
                adapter.train_matrices([other for other in adapter.trained if other != matrix])
                adapter.unclipped.pop(matrix)

    def is_final_form(self, step: Step) -> bool:
        return not any(adapter.trained for adapter in self.adapters.values())

    def on_train_end(self, step: Step) -> None:
        if not self.is_final_form(step):
            raise RuntimeError(f"final_steps: {len(self.trained())} matrices are not frozen at the end")

    def state_dict(self) -> dict[str, Any]:
        # Of a matrix that never trained no optimizer knows.
        square = {n: {"A": a.A, "B": a.B} for n, a in self.adapters.items() if a.in_features == a.out_features}
        return {
            "trained": {name: list(adapter.trained) for name, adapter in self.adapters.items()},
            "square": {name: {m: p.detach() for m, p in both.items()} for name, both in square.items()},
            "averages": {"window": self._window, "mean": self._mean, "uncertainty": self._uncertainty},
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, adapter in self.adapters.items():
            adapter.train_matrices(state["trained"][name])
            for matrix, value in state["square"].get(name, {}).items():
                adapter.get_parameter(matrix).copy_(value)
        averages = state["averages"]
        self._window, self._mean, self._uncertainty = (
            {name: a.to(self.adapters[name.rpartition(".")[0]].d.device) for name, a in averages[key].items()}
            for key in ("window", "mean", "uncertainty")
        )
