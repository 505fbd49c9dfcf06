"""The oracles: training runs of officially released code on a toy problem, as numbers.

They lie outside the repository; tests that need them skip where they are absent.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from trainer.loop.optim import build_optimizer
from variants.core.variant import Variant

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


def load(name: str) -> Oracle:
    """The oracle of that name; skips the test where there is none."""
    path = FOLDER / name / "arrays.npz"
    if not path.exists():
        pytest.skip(f"no oracles: {path} is not there (set LORATORY_ORACLES)")
    with np.load(path) as arrays:
        return Oracle(dict(arrays))


def optimizer(
    model: nn.Module, variant: Variant, lr: float, weight_decay: float = 0.0, head: tuple[str, ...] = (), **options: Any
) -> torch.optim.Optimizer:
    """The optimizer that a run would train `model` with. options: of AdamW."""
    own = {"_target_": "torch.optim.AdamW", **options}
    optim = OmegaConf.create({"lr": lr, "head_lr": None, "weight_decay": weight_decay, "optimizer": own})
    return build_optimizer(model, head, variant, optim, fused=True)
