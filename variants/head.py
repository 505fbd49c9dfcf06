"""Head only: the backbone is frozen and nothing is added. The lower reference in comparisons.

Cost      the minimum: forward through the frozen backbone, backward through the head only.
Family    reference
Trains    the head alone
Changes   nothing
Checked   the contract alone
Hooks     none.
Decay     none outside the head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from variants.core.variant import Variant, freeze


@dataclass(kw_only=True)
class Head(Variant):
    """Trains the task's head."""

    name: str = "head"

    def check(self, model: nn.Module, head: Sequence[str] = ()) -> None:
        if not head:
            raise ValueError("name: 'head' trains nothing where the task has no head; allowed: a method that does")

    def attach(self, model: nn.Module, head: Sequence[str] = ()) -> nn.Module:
        freeze(model, head)
        return model

    def closed_form(self) -> int:
        return 0

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        yield
