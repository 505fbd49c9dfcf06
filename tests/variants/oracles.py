"""The oracles: training runs of officially released code on a toy problem, as numbers.

They lie outside the repository; tests that need them skip where they are absent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn

from trainer.loop.optim import build_optimizer
from variants.core.passes import Passes
from variants.core.step import Loss, take
from variants.core.variant import Step, Variant

FOLDER = Path(os.environ.get("LORATORY_ORACLES", Path(__file__).parents[2].parent / "shared" / "oracles"))
LAYERS = ("fc1", "fc2", "fc3")


class Toy(nn.Module):
    """fc1 (6 → 8), tanh, fc2 (8 → 8), tanh, fc3 (8 → 4), in float64."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        super().__init__()
        for name in LAYERS:
            weight, bias = (torch.from_numpy(arrays[f"toy/{name}.{part}"]) for part in ("weight", "bias"))
            layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
            layer.load_state_dict({"weight": weight, "bias": bias})
            setattr(self, name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc3(torch.tanh(self.fc2(torch.tanh(self.fc1(x)))))


@dataclass
class Oracle:
    """One folder: its arrays by name, the toy's inputs (16, 6) and targets (16, 4)."""

    arrays: dict[str, np.ndarray]

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[name])

    def model(self) -> Toy:
        return Toy(self.arrays)

    def close(self, found: Any, name: str, tolerance: float = 1e-9) -> None:
        """Fails unless max|found − stored| ≤ tolerance · max|stored|."""
        stored = self.arrays[name]
        found = found.detach().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
        assert found.shape == stored.shape, f"{name}: shape {found.shape}, stored {stored.shape}"
        error, size = np.abs(found - stored).max(), np.abs(stored).max()
        assert error <= tolerance * size, f"{name}: off by {error:.3g} where the largest is {size:.3g}"

    def near(self, found: Any, name: str) -> None:
        """As `close`, with 1e-12 for arrays that are all but zero."""
        stored = self.arrays[name]
        found = found.detach().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
        assert found.shape == stored.shape, f"{name}: shape {found.shape}, stored {stored.shape}"
        size = np.abs(stored).max(initial=0.0)
        error = np.abs(found - stored).max(initial=0.0)
        assert error <= max(1e-9 * size, 1e-12), f"{name}: off by {error:.3g} where the largest is {size:.3g}"


def load(name: str) -> Oracle:
    """The oracle of that name; skips the test where there is none."""
    path = FOLDER / name / "arrays.npz"
    if not path.exists():
        pytest.skip(f"no oracles: {path} is not there (set LORATORY_ORACLES)")
    with np.load(path) as arrays:
        return Oracle(dict(arrays))


def optimizer(
    model: nn.Module,
    variant: Variant,
    lr: float,
    weight_decay: float = 0.0,
    head: tuple[str, ...] = (),
    kind: str = "torch.optim.AdamW",
    **options: Any,
) -> torch.optim.Optimizer:
    """The optimizer that a run would train `model` with. kind: its class. options: of that class."""
    own = {"_target_": kind, **options}
    optim = OmegaConf.create({"lr": lr, "head_lr": None, "weight_decay": weight_decay, "optimizer": own})
    return build_optimizer(model, head, variant, optim, fused=True)


def toy_passes(oracle: Oracle, model: nn.Module, whole: bool = False, rows: Any = None) -> Passes[torch.Tensor]:
    """Passes over the toy: row t of `toy/batch_idx` is a batch of training. whole: every batch has all 16 rows.

    rows: the numbers of the rows that come one by one; in their order if None.
    """
    x, y = oracle.tensor("toy/X"), oracle.tensor("toy/Y")
    order = torch.arange(16) if rows is None else torch.as_tensor(rows)

    def steps(count: int) -> Any:
        return iter([[torch.arange(16) if whole else oracle.tensor("toy/batch_idx")[t]] for t in range(count)])

    def loss(batch: torch.Tensor) -> Loss:
        return Loss(F.mse_loss(model(x[batch]), y[batch], reduction="sum"), y[batch].numel())

    return Passes(
        model,
        steps,
        lambda count: iter(order[:count, None]),
        loss,
        weight=lambda batch: y[batch].numel(),
        logits=lambda batch: model(x[batch]),
    )


def follow(
    oracle: Oracle,
    model: nn.Module,
    variant: Variant,
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    whole: bool = False,
    parts: int = 1,
    max_norm: float | None = None,
    schedule: Callable[[int], float] = lambda step: 1.0,
    parameters: Mapping[str, Callable[[], torch.Tensor]] | None = None,
    watch: Callable[[int, Step], None] = lambda done, step: None,
    start: int = 0,
    norms_are: bool = True,
) -> torch.optim.lr_scheduler.LRScheduler:
    """Takes `steps` steps as a run does, and fails where losses, norms or the states `after_NNN/…` are not the stored.

    whole: every step sees all 16 rows, not those of `toy/batch_idx`. parts: batches of a step. parameters: by the last
    part of their stored name, e.g. "fc1.lora_A". watch: is called after each step.
    norms_are: whether the stored norms are those of the trained parameters' gradients.
    """
    x, y, rows = oracle.tensor("toy/X"), oracle.tensor("toy/Y"), oracle.tensor("toy/batch_idx")
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)

    def loss(batch: torch.Tensor) -> Loss:
        return Loss(F.mse_loss(model(x[batch]), y[batch], reduction="sum"), y[batch].numel())

    def check(done: int) -> None:
        key = f"after_{done:03d}"
        if f"{key}/output" not in oracle.arrays:
            return
        with torch.no_grad():
            model.eval()
            oracle.close(model(x), f"{key}/output")
            oracle.close(F.mse_loss(model(x), y), f"{key}/loss_task")
            for name, adapter in variant.adapters.items():
                if f"{key}/delta/{name}" in oracle.arrays:
                    oracle.near(adapter.delta_weight(), f"{key}/delta/{name}")
            for name, found in (parameters or {}).items():
                if f"{key}/param/{name}" in oracle.arrays:
                    oracle.near(found(), f"{key}/param/{name}")

    check(start)
    losses, norms, penalties = [], [], []
    for t in range(start, steps):
        batches = [torch.arange(16)] if whole else list(rows[t * parts : (t + 1) * parts])
        step = Step(t + 1, steps, optimizer, scheduler)
        weight = sum(y[batch].numel() for batch in batches)
        taken = take(step, variant, model, batches, loss, weight, max_norm or 0.0)
        losses.append(float(taken.task_loss))
        norms.append(taken.norm)
        penalties.append(0.0 if taken.penalty is None else float(taken.penalty))
        watch(t + 1, step)
        check(t + 1)
    for found, name in ((losses, "loss_task"), (norms, "grad_norm"), (penalties, "loss_reg")):
        if name == "grad_norm" and not norms_are:
            continue
        stored = oracle.arrays[name][start:steps]
        np.testing.assert_allclose(found, stored, rtol=1e-9, atol=1e-12, err_msg=name)
    return scheduler
