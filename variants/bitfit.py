"""BitFit: only the bias vectors are trained.

Paper     Ben Zaken, Ravfogel, Goldberg 2022, "BitFit: Simple Parameter-efficient Fine-tuning for
          Transformer-based Masked Language-models", ACL, arXiv 2106.10199.
Family    reference
Trains    biases
Changes   nothing
Checked   the contract alone
Hooks     none.
Cost      one vector for each layer with a bias; no additional product in the forward pass.
Decay     none: biases and the vectors of norms do not decay.
Known     A model without biases (most decoder-only models) has nothing to train and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from variants.core import target_modules
from variants.core.variant import Variant, freeze


@dataclass(kw_only=True)
class BitFit(Variant):
    """Trains every parameter named `bias`, those of the layer norms included."""

    name: str = "bitfit"

    def leaves_out(self, model: nn.Module, head: Sequence[str] = ()) -> dict[str, int]:
        """Return the biases with other names: those of experts in one tensor, XLNet's `r_w_bias`."""
        last_names = {
            name: name.rpartition(".")[2]
            for name, _ in model.named_parameters()
            if not target_modules.inside(name, head)
        }
        biases = [name for name, last in last_names.items() if last.endswith("_bias") or "bias_" in last]
        return {name: model.get_parameter(name).numel() for name in biases}

    def attach(self, model: nn.Module, head: Sequence[str] = ()) -> nn.Module:
        freeze(model, head)
        biases = {
            name: parameter
            for name, parameter in model.named_parameters()
            if name.rpartition(".")[2] == "bias" and not target_modules.inside(name, head)
        }
        if not biases:
            raise ValueError("bitfit: the model has no bias to train")
        for parameter in biases.values():
            parameter.requires_grad_(True)
        self._count = sum(parameter.numel() for parameter in biases.values())
        return model

    def closed_form(self) -> int:
        return self._count
