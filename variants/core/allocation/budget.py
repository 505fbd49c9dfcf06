"""Budgets: ranks or entries chosen so that a method ends with a given number of parameters.

A budget counts the adapters' trainable parameters at the end of training, by real shapes. It is met as closely as
integer ranks and entries allow, and never exceeded, so two methods with one budget differ by less than one rank of one
layer.

`Budget` is the number itself, in ranks or in parameters. `even_ranks` and `spread` are for methods with fixed ranks,
`above` for the start of those that prune, `proportional` for those that score layers, `within` for those that score
components, `fill` for those that add ranks, `apportion` for those that count single entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from variants.core import layers
from variants.core.adapters.adapter import check_rank


class Ranked(Protocol):
    """A layer's adapter. rank: in use. cost: parameters of one rank."""

    @property
    def rank(self) -> int: ...

    @property
    def cost(self) -> int: ...


@dataclass(frozen=True)
class Budget:
    """What all ranks together may cost at the end. target: ranks, or parameters if `in_parameters`."""

    target: int
    in_parameters: bool

    @classmethod
    def of(cls, parameters: int | None, ranks: int) -> Budget:
        """Return the budget of `parameters`; if it is None, that of `ranks`."""
        return cls(ranks, False) if parameters is None else cls(parameters, True)

    @property
    def unit(self) -> str:
        return "parameters" if self.in_parameters else "ranks"

    def price(self, adapter: Ranked) -> int:
        """Return what one rank of `adapter` costs, in units of `target`."""
        return adapter.cost if self.in_parameters else 1

    def total(self, adapters: Iterable[Ranked]) -> int:
        """Return what the ranks in use cost."""
        return sum(adapter.rank * self.price(adapter) for adapter in adapters)

    def refuse_missed(self, adapters: Iterable[Ranked]) -> None:
        """Raise `RuntimeError` unless the ranks meet the target: exactly, or in parameters to less than one rank."""
        adapters = list(adapters)
        total, slack = self.total(adapters), max(map(self.price, adapters)) - 1
        if not self.target - slack <= total <= self.target:
            raise RuntimeError(f"budget: {total} {self.unit} at the end, the target is {self.target}")


def even_ranks(selected: Mapping[str, nn.Module], rank: int, budget: int | None) -> dict[str, int]:
    """Return `rank` for each layer, or with a budget the ranks of `spread`; a rank costs a row of A and a column of B.

    Raises `ValueError` for a rank that a layer can't have and a budget outside the bounds.
    """
    if budget is None:
        for layer in selected.values():
            check_rank(rank, layer)
        return dict.fromkeys(selected, rank)
    sizes = {name: layers.size(layer) for name, layer in selected.items()}
    return spread({n: sum(s) for n, s in sizes.items()}, budget, {n: min(s) for n, s in sizes.items()})


def spread(costs: Mapping[str, int], budget: int, most: Mapping[str, int], *, least: int = 1) -> dict[str, int]:
    """Return ranks by layer, as even as possible, whose parameters are closest to `budget` from below.

    costs: parameters of one rank, by layer. most, least: bounds of a layer's rank. All layers get the largest rank that
    fits for all of them (up to their bound). The layers that together fill the rest best, spread over the model's
    depth, get one more. Raises `ValueError` for a budget outside the bounds.
    """
    return spread_priced(lambda name, rank: costs[name] * rank, budget, most, least=least)


def spread_priced(
    price: Callable[[str, int], int], budget: int, most: Mapping[str, int], *, least: int = 1
) -> dict[str, int]:
    """`spread` if parameters are not proportional to the rank: price(name, rank) returns their number."""

    def even(rank: int) -> dict[str, int]:
        return {name: max(least, min(rank, limit)) for name, limit in most.items()}

    def total(ranks: Mapping[str, int]) -> int:
        return sum(price(name, rank) for name, rank in ranks.items())

    check_range(budget, total(even(least)), total(most))
    rank = least
    while rank < max(most.values()) and total(even(rank + 1)) <= budget:
        rank += 1
    ranks = even(rank)
    further = {name: price(name, r + 1) - price(name, r) for name, r in ranks.items() if r == rank < most[name]}
    for name in _fill(further, budget - total(ranks)):
        ranks[name] += 1
    return ranks


def above(costs: Mapping[str, int], budget: int, most: Mapping[str, int], ratio: float) -> dict[str, int]:
    """Return ranks to start from, for a method that prunes to `budget`: those of `spread` times `ratio`, rounded up.

    ratio: of the ranks at the start to those at the end. costs, most: as for `spread`, whose errors it raises.
    """
    return {name: min(math.ceil(rank * ratio), most[name]) for name, rank in spread(costs, budget, most).items()}


def proportional(
    shares: Mapping[str, float],
    costs: Mapping[str, int],
    budget: int,
    least: Mapping[str, int],
    most: Mapping[str, int],
) -> dict[str, int]:
    """Return ranks by layer in proportion to `shares`, whose parameters are closest to `budget` from below.

    costs: parameters of one rank. least, most: bounds of a layer's rank. Ranks are λ · share within their bounds, with
    one λ for all, rounded down; the layers that lost most by rounding get one more, while it fits.
    Raises `ValueError` for a budget outside the bounds, or for shares that are not positive numbers.
    """
    if not all(math.isfinite(share) and share >= 0 for share in shares.values()) or not any(shares.values()):
        raise ValueError("scores: one is not finite, or all are zero")
    check_range(budget, sum(c * least[n] for n, c in costs.items()), sum(c * most[n] for n, c in costs.items()))

    def exact(factor: float) -> dict[str, float]:
        return {name: min(max(factor * share, least[name]), most[name]) for name, share in shares.items()}

    def total(ranks: Mapping[str, float]) -> float:
        return sum(costs[name] * rank for name, rank in ranks.items())

    low, high = 0.0, max(most.values()) / min(share for share in shares.values() if share)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if total(exact(middle)) <= budget else (low, middle)
    wanted = exact(low)
    ranks = {name: math.floor(rank + 1e-9) for name, rank in wanted.items()}
    left = budget - sum(costs[name] * rank for name, rank in ranks.items())
    order = sorted(ranks, key=lambda name: ranks[name] - wanted[name])
    while fitting := [name for name in order if costs[name] <= left and ranks[name] < most[name]]:
        for name in fitting:
            if costs[name] <= left:
                ranks[name] += 1
                left -= costs[name]
    return ranks


def within(scores: Sequence[torch.Tensor], costs: Sequence[int], budget: int) -> list[list[int]]:
    """Choose the components to keep: by descending score, each that still fits into `budget`.

    scores: (r_i,) of each layer's components, read in one transfer. costs: parameters of one component of each layer.
    Returns the indices of the kept components of each layer, ascending. Of equal scores the first in the order of the
    layers comes first. Raises `ValueError` if a score is not finite.
    """
    together = torch.cat([score.detach().flatten() for score in scores]).tolist() if scores else []
    if not all(map(math.isfinite, together)):
        raise ValueError("scores: one is not finite")
    owners = [(i, j) for i, score in enumerate(scores) for j in range(score.numel())]
    kept: list[list[int]] = [[] for _ in scores]
    left, cheapest = budget, min(costs, default=0)
    for index in sorted(range(len(together)), key=lambda index: -together[index]):
        if left < cheapest:
            break
        layer, component = owners[index]
        if costs[layer] <= left:
            kept[layer].append(component)
            left -= costs[layer]
    return [sorted(components) for components in kept]


def fill(
    order: Sequence[str], ranks: Mapping[str, int], most: Mapping[str, int], prices: Mapping[str, int], room: int
) -> dict[str, int]:
    """Return by layer how many ranks it gains: one for each of its turns in `order`, repeatedly, while it fits.

    ranks, most: of each layer now, and at most. prices: of one rank. room: what all gained ranks may cost.
    """
    gained, progress = dict.fromkeys(ranks, 0), True
    while progress:
        progress = False
        for name in order:
            if ranks[name] + gained[name] < most[name] and prices[name] <= room:
                room -= prices[name]
                gained[name] += 1
                progress = True
    return gained


def masks(kept: Sequence[Sequence[int]], sizes: Sequence[int], device: torch.device) -> list[torch.Tensor]:
    """Return the result of `within` as bool masks (r_i,), which are parts of one tensor. sizes: r_i."""
    flat, start = [False] * sum(sizes), 0
    for components, size in zip(kept, sizes, strict=True):
        for component in components:
            flat[start + component] = True
        start += size
    return list(torch.tensor(flat, dtype=torch.bool, device=device).split(list(sizes)))


def apportion(sizes: Mapping[str, int], budget: int, most: Mapping[str, int]) -> dict[str, int]:
    """Return entries by layer, in proportion to `sizes`, whose sum is exactly `budget`.

    most: upper bounds by layer; what exceeds a bound goes to the other layers.
    Raises `ValueError` for a budget below 1 or above the sum of bounds.
    """
    check_range(budget, 1, sum(most.values()))
    counts = dict.fromkeys(sizes, 0)
    left = budget
    while left:
        open_layers = {name: size for name, size in sizes.items() if counts[name] < most[name]}
        total = sum(open_layers.values())
        exact = {name: left * size / total for name, size in open_layers.items()}
        given = {name: min(int(entries), most[name] - counts[name]) for name, entries in exact.items()}
        if not any(given.values()):
            # Less than one entry for each layer is left: the largest get one, of equal ones the first.
            for name in sorted(open_layers, key=lambda n: -exact[n])[:left]:
                given[name] = 1
        for name, number in given.items():
            counts[name] += number
            left -= number
    return counts


def check_range(budget: int, low: int, high: int) -> None:
    """Raise `ValueError` for a budget outside what ranks or entries can make up."""
    if not low <= budget <= high:
        raise ValueError(f"budget: {budget} parameters, allowed for these targets: {low} … {high}")


def _fill(costs: Mapping[str, int], room: int) -> list[str]:
    """Return the layers, each at most once, whose costs fill `room` best."""
    by_cost: dict[int, list[str]] = {}
    for name, cost in costs.items():
        by_cost.setdefault(cost, []).append(name)
    # Reachable sums with the number of layers of each cost; there are few different costs, so few sums.
    reached: dict[int, tuple[int, ...]] = {0: ()}
    for cost, names in by_cost.items():
        reached = {
            total + number * cost: (*counts, number)
            for total, counts in reversed(reached.items())
            for number in range(len(names) + 1)
            if total + number * cost <= room
        }
    chosen: list[str] = []
    for names, number in zip(by_cost.values(), reached[max(reached)], strict=True):
        chosen += [names[i * len(names) // number] for i in range(number)]
    return chosen
