"""Importance of parameters: smoothed sensitivity, its uncertainty, and their product as score.

    I     = |p · ∂L/∂p|                                 sensitivity
    Ī_t   = β₁ Ī_{t−1} + (1 − β₁) I_t                   smoothed
    Ū_t   = β₂ Ū_{t−1} + (1 − β₂) |I_t − Ī_t|           uncertainty
    s     = Ī · Ū                                       score

Source: Zhang et al. 2023 (AdaLoRA), equations 8 to 11, after Zhang et al. 2022 (PLATON). As in the released code both
averages start at zero without bias correction, and Ū uses the new Ī.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

NOT_FINITE = "importance: a gradient was not finite"


class Importance:
    """The two averages of named parameters. beta1, beta2: smoothing factors, 0 ≤ β < 1.

    mean, uncertainty: Ī and Ū by name. While no size changes they are parts of two long vectors, so that an update is
    a few operations over all parameters; one operation per parameter would cost more to launch than to compute.
    """

    def __init__(self, beta1: float, beta2: float) -> None:
        self.beta1, self.beta2 = beta1, beta2
        self.mean: dict[str, torch.Tensor] = {}
        self.uncertainty: dict[str, torch.Tensor] = {}
        self._flat: tuple[list[str], torch.Tensor, torch.Tensor] | None = None  # names, and the two vectors

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Update the averages with the sensitivity of `parameters`, which must have gradients.

        Numbers that are not finite stay in the averages. Checking synchronises with the device, so only `state_dict`
        and readers of scores do it (`variants.core.allocation.budget.within`).
        """
        if not parameters:
            return
        gradients = []
        for name, parameter in parameters.items():
            if parameter.grad is None:
                raise ValueError(f"importance: {name} has no gradient; score in on_gradients or on_update")
            gradients.append(parameter.grad)
        sensitivity = _flatten_dense_tensors(list(parameters.values())).mul_(_flatten_dense_tensors(gradients)).abs_()
        mean, uncertainty = self._vectors(parameters)
        mean.mul_(self.beta1).add_(sensitivity, alpha=1 - self.beta1)
        uncertainty.mul_(self.beta2).add_(sensitivity.sub_(mean).abs_(), alpha=1 - self.beta2)

    def _vectors(self, parameters: Mapping[str, nn.Parameter]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return Ī and Ū of `parameters`, concatenated; zeros for new ones."""
        names = list(parameters)
        if self._flat is None or self._flat[0] != names:
            vectors = []
            for average in (self.mean, self.uncertainty):
                parts = {n: average[n] if n in average else torch.zeros_like(p) for n, p in parameters.items()}
                vectors.append(_flatten_dense_tensors(list(parts.values())))
                average.update(_parts(vectors[-1], parts))
            self._flat = names, vectors[0], vectors[1]
        return self._flat[1], self._flat[2]

    def scores(self) -> dict[str, torch.Tensor]:
        """Return s = Ī · Ū by name, each in its parameter's shape."""
        if self._flat is not None and self._flat[0] == list(self.mean):
            return _parts(self._flat[1] * self._flat[2], self.mean)
        return {name: mean * self.uncertainty[name] for name, mean in self.mean.items()}

    def ratios(self, floor: float = 1e-6) -> dict[str, torch.Tensor]:
        """Return (Ī + floor) / (Ū + floor) by name, the score of IGU-LoRA (arXiv 2603.13792)."""
        return {name: (mean + floor) / (self.uncertainty[name] + floor) for name, mean in self.mean.items()}

    def keep(self, name: str, index: torch.Tensor, dim: int) -> None:
        """Keep the slices `index` of a parameter that was resized."""
        self._flat = None
        for average in (self.mean, self.uncertainty):
            if name in average:
                average[name] = average[name].index_select(dim, index)

    def append(self, name: str, count: int, dim: int) -> None:
        """Append `count` slices along `dim` for a parameter that has grown; their averages start at zero."""
        self._flat = None
        for average in (self.mean, self.uncertainty):
            if name in average:
                shape = list(average[name].shape)
                shape[dim] = count
                average[name] = torch.cat([average[name], average[name].new_zeros(shape)], dim)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages. Raises `ValueError` if one is not finite, so that no such state is saved."""
        averages = [average for average in (*self.mean.values(), *self.uncertainty.values()) if average.numel()]
        # Averages are ≥ 0, so the maximum shows infinities, and it propagates NaN.
        if averages and not torch.stack([average.max() for average in averages]).isfinite().all():
            raise ValueError(NOT_FINITE)
        return {"mean": dict(self.mean), "uncertainty": dict(self.uncertainty)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean, self.uncertainty = dict(state["mean"]), dict(state["uncertainty"])
        self._flat = None


def _parts(vector: torch.Tensor, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Split `vector` into tensors of the shapes of `like`, by name."""
    return dict(zip(like, _unflatten_dense_tensors(vector, list(like.values())), strict=True))
