"""Whether allocations of ranks agree: how much of their ranks two have in common, against chance.

The overlap of two allocations is 2 Σ min(aₗ, bₗ) / (Σ aₗ + Σ bₗ) over layers l: 1 for equal ones, 0 where no layer has
ranks in both. It is the complement of Bray and Curtis's dissimilarity (1957). Allocations with a floor of one rank a
layer, or with few layers, overlap by chance, too. So three values stand side by side:

    overlap    of two runs, the mean over pairs of runs
    chance     its expectation if the ranks of a run stood in any order: each run's ranks shuffled over all layers
    in place   the same, shuffled among the layers of one module (all query layers, …) only: the overlap of runs that
               agree on which modules get the ranks, and on nothing else

A permutation test asks whether the mean overlap is larger than chance: p = (1 + n≥) / (1 + N) over N shuffles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np

Array = np.ndarray
SHUFFLES = 2000
_SEED = 0


@dataclass(frozen=True)
class Agreement:
    """The means over pairs of runs. p: of a mean overlap so large by chance; see the module."""

    pairs: int
    overlap: float
    chance: float
    in_place: float
    p: float

    @property
    def beyond(self) -> float:
        """The share of what chance leaves open in which the allocations agree: (overlap − chance) / (1 − chance)."""
        return (self.overlap - self.chance) / (1 - self.chance) if self.chance < 1 else 0.0


def overlaps(a: Array, b: Array) -> Array:
    """a: (n, layers), b: (m, layers) → (n, m): 2 Σ min / Σ sum of each two; 1 for two empty allocations."""
    return _relative(np.minimum(a[:, None], b[None]).sum(-1), a, b)


def chance_overlaps(a: Array, b: Array, groups: Sequence[Array]) -> Array:
    """a: (n, layers), b: (m, layers) → (n, m): the expected overlaps if the ranks of one were shuffled in each group.

    groups: the places of the layers, each in one group.
    """
    common = np.zeros((len(a), len(b)))
    for group in groups:
        least = np.minimum(a[:, None, group, None], b[None, :, None, group])  # each layer of one with each of the other
        common += least.mean((-1, -2)) * len(group)
    return _relative(common, a, b)


def _relative(common: Array, a: Array, b: Array) -> Array:
    total = a.sum(-1)[:, None] + b.sum(-1)[None]
    return np.where(total > 0, 2 * common / np.where(total > 0, total, 1), 1.0)


def between(sets: Sequence[Array], modules: Sequence[int], shuffles: int = SHUFFLES) -> Agreement:
    """The agreement of runs in different sets, of which there are two or more.

    sets: of (runs, layers) each: the runs of one task; a set for each run asks for the agreement of all runs. A shuffle
    moves the runs of a set alike, because they are not independent. modules: of each layer, a number of its module.
    """
    layers = len(modules)
    by_module = [np.flatnonzero(np.asarray(modules) == module) for module in dict.fromkeys(modules)]
    observed = _mean(sets, overlaps)
    rng = np.random.default_rng(_SEED)
    shuffled = (_mean([runs[:, rng.permutation(layers)] for runs in sets], overlaps) for _ in range(shuffles))
    above = sum(value >= observed - 1e-12 for value in shuffled)
    return Agreement(
        pairs=sum(len(a) * len(b) for a, b in combinations(sets, 2)),
        overlap=observed,
        chance=_mean(sets, partial(chance_overlaps, groups=[np.arange(layers)])),
        in_place=_mean(sets, partial(chance_overlaps, groups=by_module)),
        p=(1 + above) / (1 + shuffles),
    )


def _mean(sets: Sequence[Array], values: Callable[[Array, Array], Array]) -> float:
    """The mean over pairs of runs of different sets."""
    return float(np.concatenate([values(a, b).ravel() for a, b in combinations(sets, 2)]).mean())
