"""What sparse methods are compared with: a small network with dense weights and a plain loop, and the hooks' own loop.

Nothing here uses the code that it is to judge: gradients of whole weights come from `torch.autograd.grad`,
and Adam is written out with an age for every element.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests.variants.oracles import LAYERS, Toy
from variants.core.variant import Step, Variant

SHAPES = {"fc1": (8, 6), "fc2": (8, 8), "fc3": (4, 8)}


def toy() -> Toy:
    """The oracles' network with weights of its own."""
    draw = np.random.default_rng(5)
    arrays = {}
    for name in LAYERS:
        arrays[f"toy/{name}.weight"] = draw.normal(0, 0.5, SHAPES[name])
        arrays[f"toy/{name}.bias"] = draw.normal(0, 0.5, SHAPES[name][0])
    return Toy(arrays)


def batch(step: int, rows: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (rows, 6) and targets (rows, 4) of a step, which change from step to step."""
    draw = torch.Generator().manual_seed(100 + step)
    x = torch.randn(rows, 6, generator=draw, dtype=torch.float64)
    return x, torch.tanh(x[:, :4] * 2 - x[:, 2:6]) + torch.randn(rows, 4, generator=draw, dtype=torch.float64) / 4


def dense_gradients(
    model: Toy, weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor
) -> dict[str, torch.Tensor]:
    """∂L/∂W (out, in) of every layer of the network with `weights` (out, in) in the place of its own."""
    leaves = {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}
    h = x
    for name in LAYERS:
        h = F.linear(h, leaves[name], getattr(model, name).bias)
        h = h if name == "fc3" else torch.tanh(h)
    loss = (h - y).square().mean()
    return dict(zip(LAYERS, torch.autograd.grad(loss, [leaves[name] for name in LAYERS]), strict=True))


@dataclass
class ElementAdam:
    """Adam over a dense tensor each element of which has its own moments and its own age."""

    shape: tuple[int, ...]
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    eps_inside: bool = False  # added to √v before its correction
    m: torch.Tensor = field(init=False)
    v: torch.Tensor = field(init=False)
    age: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.m, self.v, self.age = (torch.zeros(self.shape, dtype=torch.float64) for _ in range(3))

    def step(self, p: torch.Tensor, gradient: torch.Tensor, active: torch.Tensor, lr: float) -> None:
        """One step in place of those elements of `p` where `active` (bool) is set."""
        b1, b2 = self.betas
        self.age = self.age + active.double()
        self.m = torch.where(active, b1 * self.m + (1 - b1) * gradient, self.m)
        self.v = torch.where(active, b2 * self.v + (1 - b2) * gradient**2, self.v)
        first, second = 1 - b1**self.age, 1 - b2**self.age
        root = (self.v.sqrt() + self.eps) / second.sqrt() if self.eps_inside else (self.v / second).sqrt() + self.eps
        p.sub_(torch.where(active, lr * self.m / first / root, 0.0))


@dataclass
class Loop:
    """The documented loop with what a trainer adds: several batches a step, clipping, steps that are skipped."""

    variant: Variant
    model: nn.Module
    total: int
    lr: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    decay: float = 0.0
    micro: int = 1  # batches that a step is split into
    clip: float | None = None
    skipped: Collection[int] = ()
    forward: Callable[[nn.Module, torch.Tensor], torch.Tensor] = lambda model, x: model(x)
    data: Callable[[int], tuple[torch.Tensor, torch.Tensor]] = batch
    done: int = 0

    def __post_init__(self) -> None:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, self.lr, self.betas, self.eps, weight_decay=self.decay)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.rate)

    def rate(self, done: int) -> float:
        """The share of the learning rate at the step after `done` ones."""
        return 1 - 0.5 * done / self.total

    def step(self, index: int) -> Step:
        return Step(index, self.total, self.optimizer, self.scheduler)

    def until(self, last: int) -> Loop:
        for index in range(self.done + 1, last + 1):
            step = self.step(index)
            self.model.train()
            self.variant.on_step_begin(step)
            x, y = self.data(index)
            for a, b in zip(x.chunk(self.micro), y.chunk(self.micro), strict=True):
                ((self.forward(self.model, a) - b).square().mean() / self.micro).backward()
            if index in self.skipped:
                self.model.zero_grad()
            else:
                if self.clip is not None:
                    nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
                self.variant.on_gradients(step)
            self.optimizer.step()
            if index not in self.skipped:
                self.variant.on_update(step)
            self.scheduler.step()
            self.model.zero_grad()
            self.done = index
        return self


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-9) -> bool:
    """Whether max|found − expected| ≤ tolerance · max|expected|."""
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())
