"""The untuned model: nothing is trained, no step is made. The row that every method should beat.

Family    reference
Trains    nothing
Changes   nothing
Checked   the contract alone
Cost      one evaluation.
Hooks     none.
Decay     none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from variants.core.variant import Variant, freeze


@dataclass(kw_only=True)
class Base(Variant):
    """Evaluates the model as it is."""

    trains: ClassVar[bool] = False

    name: str = "base"

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        if head:
            raise ValueError(
                f"name: {self.name!r} where the task's head ({', '.join(head)}) is new: it would be evaluated as "
                "it was drawn; allowed: a task without a head, such as a language model's"
            )

    def attach(self, model: nn.Module, head: Sequence[str] = ()) -> nn.Module:
        self.check(model, head)
        freeze(model, head)
        return model

    def closed_form(self) -> int:
        return 0

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        yield
