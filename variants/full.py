"""Full fine-tuning: every weight is trained. The upper reference in comparisons.

Cost      gradients and two moments for the whole backbone; the saved file has the whole model.
Family    reference
Trains    every weight
Changes   nothing
Checked   the contract alone
Hooks     none.
Decay     matrices decay, biases and the vectors of norms do not: the usual rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from variants.core import target_modules
from variants.core.quantized import Quantized
from variants.core.variant import Variant


@dataclass(kw_only=True)
class Full(Variant):
    """Trains all parameters."""

    name: str = "full"

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        for module in model.modules():
            if isinstance(module, Quantized):
                raise ValueError(f"model.quantize: {module.how} with full, allowed: null; it trains every weight")

    def attach(self, model: nn.Module, head: Sequence[str] = ()) -> nn.Module:
        model.requires_grad_(True)
        self._count = sum(p.numel() for n, p in model.named_parameters() if not target_modules.inside(n, head))
        return model

    def closed_form(self) -> int:
        return self._count
