"""Importance of parameters: smoothed sensitivity, its uncertainty, and the scores made of them.

    I     = |p · ∂L/∂p|                                 sensitivity
    Ī_t   = β₁ Ī_{t−1} + (1 − β₁) I_t                   smoothed
    Ū_t   = β₂ Ū_{t−1} + (1 − β₂) |I_t − Ī_t|           uncertainty
    s     = Ī · Ū                                       score

Source: Zhang et al. 2023 (AdaLoRA), equations 8 to 11, after Zhang et al. 2022 (PLATON). As in the
released code both averages start at zero and are not corrected for it, and Ū uses the new Ī.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class Importance:
    """The two averages of named parameters. beta1, beta2: shares of the past, 0 ≤ β < 1."""

    def __init__(self, beta1: float, beta2: float) -> None:
        self.beta1, self.beta2 = beta1, beta2
        self.mean: dict[str, torch.Tensor] = {}
        self.uncertainty: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Takes in the sensitivity of `parameters`, whose gradients must be there.

        Raises `ValueError` where one is not finite: one such number would stay in the averages for good.
        """
        names = list(parameters)
        values = [parameters[name].detach() for name in names]
        gradients = []
        for name in names:
            gradient = parameters[name].grad
            if gradient is None:
                raise ValueError(f"importance: {name} has no gradient; score in on_gradients or on_update")
            gradients.append(gradient)
        sensitivity = torch._foreach_abs(torch._foreach_mul(values, gradients))
        if not bool(torch.isfinite(torch.stack(torch._foreach_norm(sensitivity)) if names else torch.zeros(1)).all()):
            raise ValueError("importance: a gradient is not finite")
        for name, value in zip(names, values, strict=True):
            if name not in self.mean:
                self.mean[name] = torch.zeros_like(value)
                self.uncertainty[name] = torch.zeros_like(value)
        mean = [self.mean[name] for name in names]
        uncertainty = [self.uncertainty[name] for name in names]
        torch._foreach_mul_(mean, self.beta1)
        torch._foreach_add_(mean, sensitivity, alpha=1 - self.beta1)
        deviation = torch._foreach_abs(torch._foreach_sub(sensitivity, mean))
        torch._foreach_mul_(uncertainty, self.beta2)
        torch._foreach_add_(uncertainty, deviation, alpha=1 - self.beta2)

    def score(self, name: str) -> torch.Tensor:
        """s = Ī · Ū, of the parameter's shape."""
        return self.mean[name] * self.uncertainty[name]

    def keep(self, name: str, index: torch.Tensor, dim: int) -> None:
        """Keeps the slices `index` of a parameter that was resized."""
        for average in (self.mean, self.uncertainty):
            if name in average:
                average[name] = average[name].index_select(dim, index)

    def append(self, name: str, count: int, dim: int) -> None:
        """Adds `count` slices along `dim` to a parameter that has grown; their averages start at zero."""
        for average in (self.mean, self.uncertainty):
            if name in average:
                shape = list(average[name].shape)
                shape[dim] = count
                average[name] = torch.cat([average[name], average[name].new_zeros(shape)], dim)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": dict(self.mean), "uncertainty": dict(self.uncertainty)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean, self.uncertainty = dict(state["mean"]), dict(state["uncertainty"])
