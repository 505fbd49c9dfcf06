"""Template of a method without hooks: LoRA with a trained scaling, one number s for each layer.

    y = W x + s · B A dropout(x)          A: r×in, kaiming-uniform(√5)    B: out×r, zero    s: (1,), one

# todo: the method's equation, in the symbols of its paper, and where each symbol is in the code
Paper     # todo: authors, year, title, arXiv number. Here: Hu et al. 2021 (LoRA), arXiv 2106.09685, with α/r trained.
# todo: repository and commit of the released code, and how it differs from the paper
Family    low rank  # todo: as in `python -m variants list`
Trains    A and B
Changes   nothing  # todo: ranks, masks or what else changes, and when
Checked   the contract alone  # todo: released code, PEFT or written out: test_file test_function
Hooks     none.  # todo: which hooks the method uses, and for what; `_template_adaptive.py` uses two;
          # variants/core/passes.py has the gradients and inputs that the base model shows before the first step
Cost      r(in + out) + 1 parameters per layer.
Decay     A and B decay, s does not.
Known     # todo: known limitations
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from variants.core import field_checks
from variants.core.adapters.adapter import LowRank, check_rank
from variants.core.variant import AdapterVariant


class Scaled(LowRank):
    """ΔW = s · B A, with s (1,) trained."""

    def __init__(self, base: nn.Module, rank: int, dropout: float) -> None:
        super().__init__(base, rank, 1.0, dropout)
        self.s = nn.Parameter(self.A.new_ones(1))

    def factors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        return self.A, self.B * self.s, None

    def closed_form(self) -> int:
        # todo: the number of trainable parameters by formula; the contract compares it with the model's
        return self.rank * self.cost + 1


@dataclass(kw_only=True)
class Template(AdapterVariant):  # todo: the name of your class, here and in the YAML's _target_
    """LoRA with a trained scaling. The fields are the hyperparameters; the YAML lists all of them.

    rank: of every adapted layer. dropout: on the adapter's input.
    """

    # todo: for runs that keep their names when the class gets another, kind = "my-method" here, without an annotation
    name: str = "template"  # todo: the method's name in tables, here and in the YAML
    rank: int = 8
    dropout: float = 0.0

    def __post_init__(self) -> None:
        # todo: a check for each field; errors name the field, the value and what is allowed
        field_checks.check_int(self, "rank")
        field_checks.check_fraction(self, "dropout")

    @classmethod
    def test_params(cls) -> list[dict[str, Any]]:
        # todo: settings that fit layers of width 8, one for each feature of the method
        return [{"rank": 2}, {"rank": 4, "dropout": 0.1}]

    def check(self, model: nn.Module, head: Any = ()) -> None:
        for layer in self.select(model, head).values():
            check_rank(self.rank, layer)

    def build(self, name: str, layer: nn.Module) -> Scaled:
        return Scaled(layer, self.rank, self.dropout)

    def decays(self, name: str) -> bool:
        return not name.endswith(".s")
