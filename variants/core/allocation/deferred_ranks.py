"""Ranks that are told from numbers on the device, and are read when they are wanted, not when they are taken.

To read a number is to wait until the device has computed all that comes before it. A rank that only a method's own
decision changes is known on the host; one that follows from values (gates at zero, entries of a matrix) is taken as a
copy of these, of all layers in one tensor, and told from it once that is on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Unread:
    """A number that `tell` finds in `numbers` (n,), which stand on the device, once they are on the host."""

    numbers: torch.Tensor
    tell: Callable[[torch.Tensor], int]


def read(rank: int | Unread) -> int:
    """The number, waited for where it has to be."""
    return rank if isinstance(rank, int) else rank.tell(rank.numbers.detach().cpu())


class Ranks:
    """The ranks of all layers as they are now. bytes: that are held for them until `read`.

    found: the rank by layer, or what it is told from.
    """

    def __init__(self, found: Mapping[str, int | Unread]) -> None:
        self._found = dict(found)
        unread = {name: rank for name, rank in found.items() if isinstance(rank, Unread)}
        self._tell = {name: (rank.tell, len(rank.numbers)) for name, rank in unread.items()}
        # A copy, for the numbers go on changing.
        self._numbers = torch.cat([rank.numbers.detach() for rank in unread.values()]) if unread else None
        self.bytes = 0 if self._numbers is None else self._numbers.nbytes

    def read(self) -> dict[str, int]:
        """Rank by layer, in the order of the layers; one transfer at most."""
        if self._numbers is not None:
            parts = self._numbers.cpu().split([size for _, size in self._tell.values()])
            told = {name: tell(part) for (name, (tell, _)), part in zip(self._tell.items(), parts, strict=True)}
            self._found |= told
            self._numbers, self._tell, self.bytes = None, {}, 0
        return {name: rank for name, rank in self._found.items() if isinstance(rank, int)}


def nonzero(numbers: torch.Tensor) -> int:
    """How many of `numbers` are not zero."""
    return int(torch.count_nonzero(numbers))
