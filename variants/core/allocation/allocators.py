"""Allocators: when ranks are removed, added or moved, and which, given a score of components or layers.

    prune    from peak ranks down to the target along a cubic curve: the components with the lowest scores go (AdaLoRA)
    grow     from few ranks up to the target along a line: the layers with the highest scores gain (IncreLoRA)
    move     at a constant budget: the lowest components go, the layers of the highest gain (ElaLoRA)
    before   once, by the first step's gradients before it moves anything: ranks in proportion to the layers' scores
    after    once, when training is over: the components with the lowest scores are cut (PARA)

An allocator only decides; the variant carries out what it decides. Steps t are counted from 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from variants.core.allocation.budget import Budget, fill, within
from variants.core.allocation.importance import NOT_FINITE
from variants.core.allocation.schedule import Cubic, check_acts, check_fits
from variants.core.allocation.score import Score


@dataclass(frozen=True)
class Layers:
    """What an allocator knows of the layers, by name: their ranks now and at most, and the price of one rank.

    start: what the ranks cost at the start of the run. budget: what they may cost at the end.
    """

    ranks: Mapping[str, int]
    most: Mapping[str, int]
    prices: Mapping[str, int]
    start: int
    budget: Budget

    @property
    def total(self) -> int:
        return sum(rank * self.prices[name] for name, rank in self.ranks.items())


@dataclass(frozen=True)
class Decision:
    """What changes. kept: indices of each layer's components that stay, ascending. gained: new components by layer."""

    kept: Mapping[str, Sequence[int]]
    gained: Mapping[str, int]


@dataclass(kw_only=True)
class Allocator:
    """Base class. components: whether it needs scores of components. at_start, at_end: whether it decides before the
    first step or after the last one alone. shape: how the ranks at the start compare with those at the end."""

    components: ClassVar[bool] = True
    at_start: ClassVar[bool] = False
    at_end: ClassVar[bool] = False
    moves: ClassVar[bool] = False
    shape: ClassVar[str] = "above"  # "above", "below" or "same"

    def plan(self, total: int) -> None:
        """Raise `ValueError` if the schedule does not fit `total` steps."""

    def due(self, t: int, total: int) -> bool:
        """Whether it may decide after step t; t = total is the end of training."""
        raise NotImplementedError

    def settled(self, t: int, total: int, layers: Layers) -> bool:
        """Whether the ranks are final after step t and what it decides then."""
        raise NotImplementedError

    def decide(self, t: int, total: int, scores: Mapping[str, torch.Tensor], layers: Layers) -> Decision | None:
        """Return what changes after step t. scores: (r,) of components, or (1,) of layers, by layer."""
        raise NotImplementedError


@dataclass(kw_only=True)
class Prune(Allocator):
    """initial_steps, final_steps, interval: of the cubic curve (`schedule.Cubic`)."""

    initial_steps: int = 0
    final_steps: int = 0
    interval: int = 1

    def plan(self, total: int) -> None:
        check_fits(self.initial_steps, self.final_steps, total)
        check_acts(self.initial_steps, self.final_steps, self.interval, total)

    def curve(self, total: int, start: int, target: int) -> Cubic:
        """Return the budget over the steps."""
        return Cubic(max(start, target), target, total, self.initial_steps, self.final_steps, self.interval)

    def now(self, t: int, total: int, layers: Layers) -> int | None:
        """Return what the ranks may cost after step t; None if none are removed then."""
        target = layers.budget.target
        if t >= total - self.final_steps:
            return target
        allowed, allocates = self.curve(total, layers.start, target).at(t)
        return allowed if allocates else None

    def due(self, t: int, total: int) -> bool:
        return t >= total - self.final_steps or self.curve(total, 0, 0).at(t)[1]

    def settled(self, t: int, total: int, layers: Layers) -> bool:
        return t >= total - self.final_steps

    def decide(self, t: int, total: int, scores: Mapping[str, torch.Tensor], layers: Layers) -> Decision | None:
        allowed = self.now(t, total, layers)
        return None if allowed is None else cut(scores, layers, allowed)


@dataclass(kw_only=True)
class After(Allocator):
    """Has no settings: it cuts once, after the last step."""

    at_end: ClassVar[bool] = True

    def due(self, t: int, total: int) -> bool:
        return t >= total - 1

    def settled(self, t: int, total: int, layers: Layers) -> bool:
        return t >= total - 1

    def decide(self, t: int, total: int, scores: Mapping[str, torch.Tensor], layers: Layers) -> Decision | None:
        return cut(scores, layers, layers.budget.target)


@dataclass(kw_only=True)
class Before(Allocator):
    """Has no settings. Every layer keeps one rank; each further rank goes to the layer with the highest
    score / (rank + 1) for which it fits, which is D'Hondt's proportional division."""

    components: ClassVar[bool] = False
    at_start: ClassVar[bool] = True
    shape: ClassVar[str] = "same"

    def due(self, t: int, total: int) -> bool:
        return t == 0

    def settled(self, t: int, total: int, layers: Layers) -> bool:
        return True

    def decide(self, t: int, total: int, scores: Mapping[str, torch.Tensor], layers: Layers) -> Decision:
        values = of_layers(scores)
        lowest = min(values.values())
        if lowest < 0:  # a score that orders layers without a zero point
            values = {name: value - lowest for name, value in values.items()}
        if not any(values.values()):
            values = dict.fromkeys(values, 1.0)
        wanted = dict.fromkeys(layers.ranks, 1)
        room = layers.budget.target - sum(layers.prices.values())
        while fitting := [n for n, r in wanted.items() if r < layers.most[n] and layers.prices[n] <= room]:
            name = max(fitting, key=lambda name: values[name] / (wanted[name] + 1))
            wanted[name] += 1
            room -= layers.prices[name]
        kept = {name: range(min(rank, wanted[name])) for name, rank in layers.ranks.items()}
        return Decision(kept, {name: max(0, wanted[name] - rank) for name, rank in layers.ranks.items()})


@dataclass(kw_only=True)
class Grow(Allocator):
    """initial_steps, final_steps: without growth. interval: steps between two rounds, which share the missing ranks
    evenly. In a round the layers gain in the order of their scores, one rank each, while it fits."""

    components: ClassVar[bool] = False
    shape: ClassVar[str] = "below"
    initial_steps: int = 0
    final_steps: int = 1
    interval: int = 1

    def rounds(self, total: int) -> list[int]:
        """Return the steps after which layers grow."""
        steps = range(self.initial_steps + 1, total - self.final_steps)
        return [t for t in steps if t % self.interval == 0]

    def plan(self, total: int) -> None:
        check_fits(self.initial_steps, self.final_steps, total)
        if not self.rounds(total):
            raise ValueError(
                f"interval: {self.interval} leaves no round of growth between {self.initial_steps} initial and "
                f"{self.final_steps} final steps of {total}, allowed: a smaller one"
            )

    def due(self, t: int, total: int) -> bool:
        return t in self.rounds(total)

    def settled(self, t: int, total: int, layers: Layers) -> bool:
        return t >= self.rounds(total)[-1]

    def decide(self, t: int, total: int, scores: Mapping[str, torch.Tensor], layers: Layers) -> Decision:
        rounds, values = self.rounds(total), of_layers(scores)
        missing = layers.budget.target - layers.start
        allowed = layers.start + missing * (rounds.index(t) + 1) // len(rounds)
        order = sorted(values, key=lambda name: -values[name])
        gained = fill(order, layers.ranks, layers.most, layers.prices, allowed - layers.total)
        return Decision({name: range(rank) for name, rank in layers.ranks.items()}, gained)


@dataclass(kw_only=True)
class Move(Allocator):
    """initial_steps, final_steps: without rounds. interval: steps between two rounds. pool: components of a layer that
    may be pruned in a round. exchange: components pruned in the first round, from where a cubic curve falls to zero.

    Source: ElaLoRA (arXiv 2504.00254).
    """

    shape: ClassVar[str] = "same"
    moves: ClassVar[bool] = True
    initial_steps: int = 0
    final_steps: int = 1
    interval: int = 1
    pool: int = 2
    exchange: int = 4

    def exchanged(self, t: int, total: int) -> int:
        """Return how many components are exchanged after step t; 0 if there is no round."""
        end = total - self.final_steps
        if not self.initial_steps < t < end or t % self.interval:
            return 0
        return self.falling((t - self.initial_steps) / (end - self.initial_steps))

    def falling(self, progress: float) -> int:
        """Return the components of a round at this fraction of all rounds."""
        return round(self.exchange * (1 - progress**3))

    def plan(self, total: int) -> None:
        check_fits(self.initial_steps, self.final_steps, total)
        if not any(self.exchanged(t, total) for t in range(total)):
            raise ValueError(
                f"interval: {self.interval} leaves no round with b ≥ 1 between {self.initial_steps} initial and "
                f"{self.final_steps} final steps of {total}, allowed: a smaller interval or a larger exchange"
            )

    def due(self, t: int, total: int) -> bool:
        return self.exchanged(t, total) > 0

    def settled(self, t: int, total: int, layers: Layers) -> bool:
        return t >= total - self.final_steps

    def decide(self, t: int, total: int, scores: Mapping[str, torch.Tensor], layers: Layers) -> Decision:
        return self.exchange_of(self.exchanged(t, total), scores, layers)

    def exchange_of(self, count: int, scores: Mapping[str, torch.Tensor], layers: Layers) -> Decision:
        """Return which components of the pool go and which layers gain: at most half the pool, and at most `count`."""
        values, pool = on_host(scores), []
        for name, score in values.items():
            lowest = sorted(range(len(score)), key=score.__getitem__)[: min(self.pool, max(0, len(score) - 1))]
            pool += [(score[i], name, i) for i in lowest]
        pool.sort(key=lambda entry: entry[0])  # stable: of equal scores the first in the order of the layers
        pruned: dict[str, set[int]] = {name: set() for name in values}
        for _, name, i in pool[: min(count, len(pool) // 2)]:
            pruned[name].add(i)
        kept = {name: [i for i in range(rank) if i not in pruned[name]] for name, rank in layers.ranks.items()}
        left = {name: len(indices) for name, indices in kept.items()}
        room = layers.budget.target - sum(rank * layers.prices[name] for name, rank in left.items())
        gained = fill([name for _, name, _ in reversed(pool)], left, layers.most, layers.prices, room)
        return Decision(kept, gained)


ALLOCATORS: dict[str, type[Allocator]] = {
    "prune": Prune,
    "grow": Grow,
    "move": Move,
    "before": Before,
    "after": After,
}


def cut(scores: Mapping[str, torch.Tensor], layers: Layers, allowed: int) -> Decision | None:
    """Return the components with the highest scores that fit into `allowed`; None if all do."""
    if sum(len(score) * layers.prices[name] for name, score in scores.items()) <= allowed:
        return None
    kept = within(list(scores.values()), [layers.prices[name] for name in scores], allowed)
    return Decision(dict(zip(scores, kept, strict=True)), dict.fromkeys(scores, 0))


def on_host(scores: Mapping[str, torch.Tensor]) -> dict[str, list[float]]:
    """Return scores as numbers, after one transfer. Raises `ValueError` if one is not finite."""
    together = torch.cat(list(scores.values())).tolist()
    if not all(map(math.isfinite, together)):
        raise ValueError(NOT_FINITE)
    numbers = iter(together)
    return {name: [next(numbers) for _ in range(len(score))] for name, score in scores.items()}


def of_layers(scores: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return one number for each layer: its own, or the mean over its components; 0 without components."""
    return {name: sum(values) / len(values) if values else 0.0 for name, values in on_host(scores).items()}


def refuse_pair(score: type[Score], allocator: type[Allocator], name: str, known: Mapping[str, type[Score]]) -> None:
    """Raise `ValueError` if the allocator can't decide by the score. name: of the score in the config."""
    faults = [
        (
            lambda s: allocator.components and s.per == "layer",
            "it gives one number to a layer and orders none of its components",
        ),
        (lambda s: allocator.at_start and not s.at_start, "it is zero until training has moved e or B"),
        (lambda s: allocator.moves and s.even, "it prefers no layer, so no rank would move"),
        (lambda s: s.of_trained and not allocator.at_end, "it rewrites the components, which ends their training"),
    ]
    for fault, why in faults:
        if fault(score):
            allowed = [n for n, other in known.items() if not any(is_fault(other) for is_fault, _ in faults)]
            kind = next(n for n, cls in ALLOCATORS.items() if cls is allocator)
            raise ValueError(f"score: {name} with allocator: {kind}, {why}; allowed: {', '.join(allowed)}")
