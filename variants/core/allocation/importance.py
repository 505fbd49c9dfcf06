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
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

NOT_FINITE = "importance: a gradient was not finite"


class Importance:
    """The two averages of named parameters. beta1, beta2: shares of the past, 0 ≤ β < 1.

    mean, uncertainty: Ī and Ū by name. Between two changes of size they are parts of two long vectors, so that an
    update is a few operations over all parameters together: one by one they cost more to start than to compute.
    """

    def __init__(self, beta1: float, beta2: float) -> None:
        self.beta1, self.beta2 = beta1, beta2
        self.mean: dict[str, torch.Tensor] = {}
        self.uncertainty: dict[str, torch.Tensor] = {}
        self._joined: tuple[list[str], torch.Tensor, torch.Tensor] | None = None  # names, and the two vectors

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Takes in the sensitivity of `parameters`, whose gradients must be there.

        A number that is not finite stays in the averages for good. To look for one is to wait for the device, so
        that is left to those who read scores (`variants.core.allocation.budget.within`) and to `state_dict`.
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
        """Ī and Ū of `parameters`, one after the other; zeros for those that are new."""
        names = list(parameters)
        if self._joined is None or self._joined[0] != names:
            vectors = []
            for average in (self.mean, self.uncertainty):
                parts = {n: average[n] if n in average else torch.zeros_like(p) for n, p in parameters.items()}
                vectors.append(_flatten_dense_tensors(list(parts.values())))
                average.update(_parts(vectors[-1], parts))
            self._joined = names, vectors[0], vectors[1]
        return self._joined[1], self._joined[2]

    def scores(self) -> dict[str, torch.Tensor]:
        """s = Ī · Ū by name, each of its parameter's shape."""
        if self._joined is not None and self._joined[0] == list(self.mean):
            return _parts(self._joined[1] * self._joined[2], self.mean)
        return {name: mean * self.uncertainty[name] for name, mean in self.mean.items()}

    def keep(self, name: str, index: torch.Tensor, dim: int) -> None:
        """Keeps the slices `index` of a parameter that was resized."""
        self._joined = None
        for average in (self.mean, self.uncertainty):
            if name in average:
                average[name] = average[name].index_select(dim, index)

    def append(self, name: str, count: int, dim: int) -> None:
        """Adds `count` slices along `dim` to a parameter that has grown; their averages start at zero."""
        self._joined = None
        for average in (self.mean, self.uncertainty):
            if name in average:
                shape = list(average[name].shape)
                shape[dim] = count
                average[name] = torch.cat([average[name], average[name].new_zeros(shape)], dim)

    def state_dict(self) -> dict[str, Any]:
        """Raises `ValueError` where an average is not finite: no such state is saved."""
        averages = [average for average in (*self.mean.values(), *self.uncertainty.values()) if average.numel()]
        # The largest of what is ≥ 0, or NaN where there is one.
        if averages and not torch.stack([average.max() for average in averages]).isfinite().all():
            raise ValueError(NOT_FINITE)
        return {"mean": dict(self.mean), "uncertainty": dict(self.uncertainty)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean, self.uncertainty = dict(state["mean"]), dict(state["uncertainty"])
        self._joined = None


def _parts(vector: torch.Tensor, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`vector` cut into tensors of the shapes of `like`, by name."""
    return dict(zip(like, _unflatten_dense_tensors(vector, list(like.values())), strict=True))
