"""Scopes of masks: which entries compete, and what is chosen together.

| scope | unit | the units compete | entries are |
|---|---|---|---|
| tensor | an entry | within a layer | exactly the budget |
| global | an entry | over all layers | exactly the budget |
| row | an entry | within its row of W, one output neuron | exactly the budget; rows of a layer differ by one at most |
| block | `block` × `block` entries | over all layers | the budget but less than one block |
| subnet | rows × columns of a layer | see `best_subnet` | the budget but less than a row or column of a layer |
| channel | `group` rows or columns | within a layer | the budget but less than one unit of any layer |

A unit's score is the mean over its entries. Of equal scores the first wins, in the order of layers, rows and columns.
W (out, in) of a convolution has a row for each filter and a column for each weight of a filter, whatever its groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from variants.core.adapters.sparse_delta import largest, largest_in_rows, largest_of_groups
from variants.core.allocation.budget import apportion, spread
from variants.core.masks.sources import Scores

Size = tuple[int, int]  # (out, in) of a layer
Count = tuple[int, int]  # units of a layer and entries of a unit; or rows and columns
Chosen = dict[str, torch.Tensor]  # indices (nnz,) by layer, ascending, in the flattened matrix (out, in)
SHARES = ("entries", "sides", "rows")


@dataclass(kw_only=True)
class Scope:
    """Base class: units within each layer.

    pooled: whether units of different layers compete. in_part: whether a part of a layer's entries can be exchanged.
    """

    pooled: ClassVar[bool] = False
    in_part: ClassVar[bool] = True

    def check(self, sizes: Mapping[str, Size]) -> None:
        """Raise `ValueError` for layers that it can't divide into units."""

    def cost(self, size: Size) -> int:
        """Return the number of entries of a unit."""
        return 1

    def counts(self, sizes: Mapping[str, Size], total: int) -> dict[str, Count]:
        """Return how much is chosen of each layer, `total` entries in all or as many as whole units allow.

        Pooled, only the sum has a meaning. Raises `ValueError` for more entries than there are, or fewer than a unit.
        """
        raise NotImplementedError(f"{type(self).__name__}.counts")

    def held(self, entries: torch.Tensor, size: Size) -> Count:
        """Return how much of a layer these entries are, in the terms of `counts`."""
        return len(entries) // self.cost(size), self.cost(size)

    def fewer(
        self, sizes: Mapping[str, Size], total: int, there: Chosen, final: Mapping[str, Count]
    ) -> Mapping[str, Count]:
        """Return `counts` of `total`, none above what is `there` and none below `final`.

        A layer's share can grow where the total falls, by how the remainder is handed out. It would then get entries
        back that were given up.
        """
        wanted = self.counts(sizes, total)
        if self.pooled:
            return wanted
        held = {name: self.held(there[name], size) for name, size in sizes.items()}

        def between(name: str, part: int) -> int:
            return max(final[name][part], min(wanted[name][part], held[name][part]))

        return {name: (between(name, 0), between(name, 1)) for name in sizes}

    def units(self, score: torch.Tensor) -> torch.Tensor:
        """Return the scores (units,) of a layer's units. score: (out, in)."""
        return score.flatten()

    def entries(self, units: torch.Tensor, size: Size) -> torch.Tensor:
        """Return the entries of `units` (n,), ascending."""
        return units

    def choose(self, scores: Scores, counts: Mapping[str, Count], within: Chosen | None = None) -> Chosen:
        """Return the entries that score most. within: the entries that it chooses from; None for all."""
        units = {name: self.units(score) for name, score in scores.items()}
        if within is not None:
            units = {n: u.masked_fill(~self._inside(within[n], scores[n]), -torch.inf) for n, u in units.items()}
        chosen = self._largest(units, {name: counts[name][0] for name in units})
        return {name: self.entries(chosen[name], _size(score)) for name, score in scores.items()}

    def exchange(self, values: Scores, scores: Scores, current: Chosen, fraction: float) -> Chosen:
        """Return `current` without the `fraction` with the lowest `values`, and as many others that score most."""
        stays, grows, n_stay, n_grow = {}, {}, {}, {}
        for name, score in scores.items():
            inside, n = self._inside(current[name], score), len(current[name]) // self.cost(_size(score))
            stays[name] = self.units(values[name]).masked_fill(~inside, -torch.inf)
            grows[name] = self.units(score).masked_fill(inside, -torch.inf)
            n_grow[name] = n if self.pooled else min(round(fraction * n), len(inside) - n)
            n_stay[name] = n - n_grow[name]
        if self.pooled:  # the same for all layers together
            n, whole = sum(n_grow.values()), sum(map(len, grows.values()))
            moved = min(round(fraction * n), whole - n)
            first, *others = scores
            n_grow, n_stay = ({first: k, **dict.fromkeys(others, 0)} for k in (moved, n - moved))
        stay, grow = self._largest(stays, n_stay), self._largest(grows, n_grow)
        return {
            name: self.entries(torch.cat([stay[name], grow[name]]).sort().values, _size(score))
            for name, score in scores.items()
        }

    def _inside(self, entries: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
        """Return which units (units,) have these entries: all of a unit are there, or none."""
        there = torch.zeros(score.numel(), dtype=torch.float32, device=score.device)
        return self.units(there.index_fill_(0, entries, 1.0).view(score.shape)) > 0.5

    def _largest(self, units: Scores, counts: Mapping[str, int]) -> Chosen:
        """Return the units with the highest scores, ascending, by layer."""
        names = list(units)
        if self.pooled:
            (found,) = largest_of_groups([[units[n] for n in names]], [sum(counts[n] for n in names)])
            return dict(zip(names, found, strict=True))
        alone = largest_of_groups([[units[n]] for n in names], [counts[n] for n in names])
        return {name: chosen for name, (chosen,) in zip(names, alone, strict=True)}


def _size(score: torch.Tensor) -> Size:
    return score.shape[0], score.shape[1]


def _entries(sizes: Mapping[str, Size]) -> dict[str, int]:
    return {name: rows * columns for name, (rows, columns) in sizes.items()}


@dataclass(kw_only=True)
class Tensor(Scope):
    """share: what a layer's number of entries is proportional to: its "entries", its "sides" (out + in), its "rows"."""

    share: str = "entries"

    def counts(self, sizes: Mapping[str, Size], total: int) -> dict[str, Count]:
        entries = _entries(sizes)
        shares = {"entries": entries, "sides": {n: sum(s) for n, s in sizes.items()}}
        shares["rows"] = {name: rows for name, (rows, _) in sizes.items()}
        return {name: (count, 1) for name, count in apportion(shares[self.share], total, entries).items()}


@dataclass(kw_only=True)
class Global(Scope):
    """Has no settings."""

    pooled: ClassVar[bool] = True

    def counts(self, sizes: Mapping[str, Size], total: int) -> dict[str, Count]:
        entries = _entries(sizes)
        return {name: (count, 1) for name, count in apportion(entries, total, entries).items()}


@dataclass(kw_only=True)
class Row(Tensor):
    """share: as of the scope tensor. What rows of a layer can't share evenly goes to those with the next best entry."""

    def _largest(self, units: Scores, counts: Mapping[str, int]) -> Chosen:
        raise NotImplementedError("rows are chosen by `choose` and `exchange`")

    def choose(self, scores: Scores, counts: Mapping[str, Count], within: Chosen | None = None) -> Chosen:
        found = {}
        for name, score in scores.items():
            if within is not None:
                score = score.masked_fill(~self._inside(within[name], score).view(score.shape), -torch.inf)
            found[name] = self._of_layer(score, counts[name][0])
        return found

    @staticmethod
    def _of_layer(score: torch.Tensor, count: int) -> torch.Tensor:
        rows, columns = score.shape
        each, more = divmod(count, rows)
        if not more:
            at = largest_in_rows(score, each)
            return (at + torch.arange(rows, device=score.device)[:, None] * columns).flatten()
        order = score.argsort(dim=1, descending=True, stable=True)
        following = score.gather(1, order[:, each : each + 1]).flatten()
        counts = torch.full((rows,), each, device=score.device).index_fill(0, largest(following, more), each + 1)
        return _first_of_rows(order, counts, count)

    def exchange(self, values: Scores, scores: Scores, current: Chosen, fraction: float) -> Chosen:
        found = {}
        for name, score in scores.items():
            inside = self._inside(current[name], score).view(score.shape)
            each = inside.sum(1)
            moved = torch.minimum((fraction * each).round().to(each.dtype), score.shape[1] - each)
            orders = [
                values[name].masked_fill(~inside, -torch.inf).argsort(dim=1, descending=True, stable=True),
                score.masked_fill(inside, -torch.inf).argsort(dim=1, descending=True, stable=True),
            ]
            picked = _in_rows(orders[0], each - moved) | _in_rows(orders[1], moved)
            found[name] = picked.flatten().nonzero_static(size=len(current[name])).flatten()
        return found


def _in_rows(order: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return a mask of the first `counts` (rows,) of the columns `order` (rows, columns) in every row."""
    first = torch.arange(order.shape[1], device=order.device) < counts[:, None]
    return torch.zeros_like(first).scatter_(1, order, first)


def _first_of_rows(order: torch.Tensor, counts: torch.Tensor, total: int) -> torch.Tensor:
    return _in_rows(order, counts).flatten().nonzero_static(size=total).flatten()


@dataclass(kw_only=True)
class Block(Scope):
    """block: side of a block; it must divide both sides of every layer."""

    pooled: ClassVar[bool] = True
    block: int = 16

    def check(self, sizes: Mapping[str, Size]) -> None:
        for name, (rows, columns) in sizes.items():
            if rows % self.block or columns % self.block:
                raise ValueError(f"block: {self.block} does not divide {name} of size {rows}×{columns}")

    def cost(self, size: Size) -> int:
        return self.block**2

    def counts(self, sizes: Mapping[str, Size], total: int) -> dict[str, Count]:
        there = {name: entries // self.block**2 for name, entries in _entries(sizes).items()}
        blocks = total // self.block**2
        if not 1 <= blocks <= sum(there.values()):
            raise ValueError(
                f"block: {self.block} makes {blocks} blocks of {total} entries, "
                f"allowed for these targets: 1 … {sum(there.values())}"
            )
        return {name: (count, self.block**2) for name, count in apportion(there, blocks, there).items()}

    def units(self, score: torch.Tensor) -> torch.Tensor:
        rows, columns = score.shape
        return score.reshape(rows // self.block, self.block, columns // self.block, self.block).mean((1, 3)).flatten()

    def entries(self, units: torch.Tensor, size: Size) -> torch.Tensor:
        across, side = size[1] // self.block, torch.arange(self.block, device=units.device)
        first = units // across * self.block * size[1] + units % across * self.block
        return (first[:, None, None] + side[:, None] * size[1] + side).flatten().sort().values


@dataclass(kw_only=True)
class Channel(Scope):
    """axis: "output" (rows of W) or "input" (columns). group: how many side by side are one unit, as a head's."""

    axis: str = "output"
    group: int = 1

    def check(self, sizes: Mapping[str, Size]) -> None:
        for name, size in sizes.items():
            if self._lines(size) % self.group:
                raise ValueError(f"group: {self.group} does not divide the {self._lines(size)} channels of {name}")

    def _lines(self, size: Size) -> int:
        return size[0] if self.axis == "output" else size[1]

    def cost(self, size: Size) -> int:
        return self.group * size[0] * size[1] // self._lines(size)

    def counts(self, sizes: Mapping[str, Size], total: int) -> dict[str, Count]:
        costs = {name: self.cost(size) for name, size in sizes.items()}
        most = {name: self._lines(size) // self.group for name, size in sizes.items()}
        if total < min(costs.values()):
            raise ValueError(f"scope: channel of {min(costs.values())} entries or more, allowed: more than {total}")
        return {name: (n, costs[name]) for name, n in spread(costs, total, most, least=0).items()}

    def units(self, score: torch.Tensor) -> torch.Tensor:
        lines = score.mean(1) if self.axis == "output" else score.mean(0)
        return lines.view(-1, self.group).mean(1) if self.group > 1 else lines

    def entries(self, units: torch.Tensor, size: Size) -> torch.Tensor:
        lines = (units[:, None] * self.group + torch.arange(self.group, device=units.device)).flatten()
        every = torch.arange(size[1] if self.axis == "output" else size[0], device=units.device)
        if self.axis == "output":
            return (lines[:, None] * size[1] + every).flatten()
        return (every[:, None] * size[1] + lines).flatten()


@dataclass(kw_only=True)
class Subnet(Scope):
    """Has no settings. Rows and columns of a layer are the same fraction of its sides, up to the remainder."""

    in_part: ClassVar[bool] = False

    def counts(self, sizes: Mapping[str, Size], total: int) -> dict[str, Count]:
        whole = sum(_entries(sizes).values())
        if not len(sizes) <= total <= whole:
            raise ValueError(f"scope: subnet of {total} entries, allowed for these targets: {len(sizes)} … {whole}")

        def sides(fraction: float) -> dict[str, Count]:
            return {n: (max(1, int(fraction * a)), max(1, int(fraction * b))) for n, (a, b) in sizes.items()}

        def cost(found: Mapping[str, Count]) -> int:
            return sum(a * b for a, b in found.values())

        low, high = 0.0, 1.0 + 1e-9
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if cost(sides(middle)) <= total else (low, middle)
        found = sides(low)
        left, moved = total - cost(found), True
        while moved:
            moved = False
            for name, size in sizes.items():
                for axis in (0, 1):
                    a, b = found[name]
                    if (a, b)[axis] < size[axis] and (b, a)[axis] <= left:
                        left -= (b, a)[axis]
                        found[name] = (a + (axis == 0), b + (axis == 1))
                        moved = True
        return found

    def held(self, entries: torch.Tensor, size: Size) -> Count:
        return len((entries // size[1]).unique()), len((entries % size[1]).unique())

    def choose(self, scores: Scores, counts: Mapping[str, Count], within: Chosen | None = None) -> Chosen:
        found = {}
        for name, score in scores.items():
            inside = None
            if within is not None:
                inside = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
                inside = inside.index_fill_(0, within[name], True).view(score.shape)
            rows, columns = best_subnet(score, *counts[name], inside)
            found[name] = (rows[:, None] * score.shape[1] + columns).flatten()
        return found


def best_subnet(
    score: torch.Tensor, rows: int, columns: int, inside: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows (r,) and columns (c,), ascending, between which the scores (out, in) sum to most, of three guesses.

    Rows and columns by their sums, each apart; rows first, then columns by their sums over these rows; columns first.
    Of equal sums the first guess wins. inside: mask (out, in) of rows × columns that it chooses from.
    Source: LoSiA (Wang et al. 2025, arXiv 2507.04487).
    """
    if inside is not None:
        score = score.masked_fill(~inside, 0.0)

    def best(matrix: torch.Tensor, count: int, axis: int) -> torch.Tensor:
        """The rows (axis 0) or columns (axis 1) of `matrix` with the largest sums."""
        sums = matrix.sum(1 - axis)
        if inside is not None:
            sums = sums.masked_fill(~inside.any(1 - axis), -torch.inf)
        return largest(sums, count)

    by_row, by_column = best(score, rows, 0), best(score, columns, 1)
    guesses = [
        (by_row, by_column),
        (by_row, best(score[by_row], columns, 1)),
        (best(score[:, by_column], rows, 0), by_column),
    ]
    sums = torch.stack([score[a][:, b].sum() for a, b in guesses])
    winner = sums.argmax(0, keepdim=True)
    return tuple(torch.stack(part).index_select(0, winner)[0] for part in zip(*guesses, strict=True))  # type: ignore[return-value]


def density(fraction: float, sizes: Mapping[str, Size]) -> int:
    """Return how many entries are `fraction` of those of all layers, rounded down. Raises `ValueError` for none."""
    whole = sum(_entries(sizes).values())
    if not (total := math.floor(fraction * whole)):
        raise ValueError(f"density: {fraction} keeps none of {whole} entries, allowed: at least 1/{whole}")
    return total


SCOPES: dict[str, type[Scope]] = {
    "tensor": Tensor,
    "global": Global,
    "row": Row,
    "block": Block,
    "subnet": Subnet,
    "channel": Channel,
}
