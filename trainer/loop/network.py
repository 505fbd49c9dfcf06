"""Calls a run's model in the run's precision, for objectives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn


class Network:
    """Calls `model` under the run's autocast, without its cache. source: the folder from which it was loaded.

    dtype: of inputs that are no integers, as pixels and samples are; None leaves them.
    """

    def __init__(
        self, model: nn.Module, source: Path, device: torch.device, autocast: bool, dtype: torch.dtype | None = None
    ) -> None:
        self.model: Any = model
        self.source = source
        self._device, self._autocast, self._dtype = device, autocast, dtype
        if (config := getattr(model, "config", None)) is not None:
            config.use_cache = False  # the cache of keys and values serves only generation

    def __call__(self, **inputs: Any) -> Any:
        inputs = {name: cast(value, self._dtype) for name, value in inputs.items()}
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            return self.model(**inputs)

    def recompute_activations(self) -> None:
        """Makes backward passes compute the activations of each block again, which needs less memory and more time."""
        self.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})

    def generate(self, **inputs: Any) -> torch.Tensor:
        """Returns the token ids of transformers' `generate`, shape (rows, length)."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            ids: torch.Tensor = self.model.generate(**inputs)
        return ids


def cast(value: Any, dtype: torch.dtype | None) -> Any:
    """Returns a tensor of floating-point numbers in `dtype`, if there is one, and anything else unchanged."""
    floating = dtype is not None and isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(dtype) if floating else value
