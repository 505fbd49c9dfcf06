"""Template: a method of your own. Copy this file to variants/<method>.py and its YAML beside the others.

This one is LoRA-FA: A stays as it was drawn, only B is trained.

    y = W x + (α/r) B A dropout(x)          A: r×in, frozen    B: out×r, zero

# todo: the method's equation, in the symbols of its paper, and where each symbol is in the code
Paper     Zhang et al. 2023, "LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models
          Fine-tuning", arXiv 2308.03303.
# todo: repository and commit of the released code, and what it does otherwise than the paper
Hooks     none.  # todo: which hooks the method uses, and for what
Cost      r · out parameters; of the input of a layer only the r products A x are kept for backward.
Decay     B decays.  # todo: what of yours does not (`optimizer_options`, `decays`), by its paper or its code
Known     # todo: what is known against it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from variants.core import field_checks
from variants.core.adapters.adapter import LowRank
from variants.core.variant import AdapterVariant


class FrozenA(LowRank):
    """Low rank with A frozen."""

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float) -> None:
        super().__init__(base, rank, scale, dropout)
        self.A.requires_grad_(False)

    def closed_form(self) -> int:
        # todo: the number of trainable parameters by formula; the contract compares it with the real one
        return self.rank * self.out_features


@dataclass(kw_only=True)
class Template(AdapterVariant):
    """LoRA-FA. The fields are the hyperparameters; the YAML lists them all.

    rank: of every adapted layer. alpha: numerator of the scaling. dropout: on the adapter's input.
    """

    name: str = "template"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        # todo: one line for each value that can't be: the field, the value, what is allowed
        field_checks.whole(self, "rank")
        field_checks.positive(self, "alpha")
        field_checks.share(self, "dropout")

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        # todo: settings that fit layers of width 8, one for each thing that the method can do
        return [{"rank": 2}, {"rank": 4, "dropout": 0.1}]

    def build(self, name: str, layer: nn.Module) -> FrozenA:
        return FrozenA(layer, self.rank, self.alpha / self.rank, self.dropout)

    def state_dict(self) -> dict[str, Any]:
        # todo: what is needed besides the trained parameters; here A, which no seed has to draw again
        return {name: adapter.A.detach() for name, adapter in self.adapters.items() if isinstance(adapter, FrozenA)}

    def load_state_dict(self, state: Any) -> None:
        for name, adapter in self.adapters.items():
            if isinstance(adapter, FrozenA):
                adapter.A.data.copy_(state[name])
