"""Pairs of runs → numbers: over seeds, over test examples, corrected for the family of tests.

Holm's family is all tests of one kind that one command makes: the paired t of every pair of rows
and task with two seeds or more, likewise the sign-flip tests, and McNemar's test of every pair of
runs. A t test that a spread of zero leaves undefined counts as one that did not reject: dropping
it would make the others look better for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.comparison import predictions
from analysis.comparison.pairs import Paired, pair
from analysis.comparison.predictions import NotUsable, Predictions
from analysis.comparison.sides import Sides
from analysis.records.runs import Run
from analysis.stats import ALPHA, examples, seeds
from analysis.stats.examples import Interval, McNemar
from analysis.stats.family import holm
from analysis.stats.seeds import OverSeeds


@dataclass(frozen=True)
class OneSeed:
    """The two models of one seed on n examples."""

    n: int
    interval: Interval
    mcnemar: McNemar | None  # for accuracy, and any other share of right answers
    holm: float | None = None  # McNemar's p, adjusted


@dataclass(frozen=True)
class Unusable:
    """Why predictions can't be used, and the rows whose runs it is true of."""

    rows: tuple[str, ...]  # labels
    reason: str


@dataclass(frozen=True)
class OverExamples:
    """A − B on test examples, for the models of the seeds whose predictions can be used."""

    by_seed: dict[int, OneSeed]
    mean: Interval | None  # over those seeds; None where they are not scored on the same examples
    unusable: dict[Unusable, list[int]]  # seeds

    @property
    def n(self) -> int | None:
        """Examples, where all seeds have as many."""
        sizes = {one.n for one in self.by_seed.values()}
        return sizes.pop() if len(sizes) == 1 else None


@dataclass(frozen=True)
class Outcome:
    """Two rows on one task."""

    paired: Paired
    seeds: OverSeeds
    examples: OverExamples
    t_holm: float | None = None  # p of the paired t, adjusted
    flip_holm: float | None = None  # p of the sign-flip test, adjusted
    flip_can_tell: bool = False  # whether any differences over so many seeds could bring that below ALPHA
    smallest: float | None = None  # see `seeds.smallest_shown`


@dataclass(frozen=True)
class Outcomes:
    """Everything that was compared, everything that could not be, and the sizes of Holm's families."""

    done: list[Outcome]
    refused: list[Paired]
    t_tests: int
    mcnemar_tests: int


def compute(sides: Sides, tasks: Sequence[str], resamples: int | None) -> Outcomes:
    """Compares each pair of rows on each task, in that order. resamples: None compares over seeds alone."""
    found = [paired for a, b in sides.pairs for task in tasks if (paired := pair(a, b, task))]
    done = [
        Outcome(
            paired,
            seeds.over_seeds(*paired.values()),
            OverExamples({}, None, {}) if resamples is None else over_examples(paired, resamples),
        )
        for paired in found
        if not paired.refused
    ]
    refused = [paired for paired in found if paired.refused]
    return _adjusted(done, refused)


def over_examples(paired: Paired, resamples: int) -> OverExamples:
    """Bootstrap and McNemar's test of all pairs of runs whose predictions can be used."""
    usable: dict[int, tuple[Predictions, Predictions]] = {}
    unusable: dict[Unusable, list[int]] = defaultdict(list)
    for seed, runs in zip(paired.seeds, paired.pairs, strict=True):
        found = _read(paired, runs)
        if isinstance(found, Unusable):
            unusable[found].append(seed)
        else:
            usable[seed] = found
    sides = list(usable.values())
    if not sides:
        return OverExamples({}, None, dict(unusable))
    mean: Interval | None
    if all(a.same_examples(sides[0][0]) for a, _ in sides):
        mean, intervals = _bootstrap(paired, sides, resamples)
    else:
        mean, intervals = None, [_bootstrap(paired, [one], resamples)[0] for one in sides]
    by_seed = {
        seed: OneSeed(len(a.ids), interval, _mcnemar(a, b, paired.metric))
        for (seed, (a, b)), interval in zip(usable.items(), intervals, strict=True)
    }
    return OverExamples(by_seed, mean, dict(unusable))


def _read(paired: Paired, runs: tuple[Run, Run]) -> tuple[Predictions, Predictions] | Unusable:
    sides = []
    for row, run in zip((paired.a, paired.b), runs, strict=True):
        try:
            sides.append(predictions.read(run))
        except NotUsable as reason:
            return Unusable((row.label,), str(reason))
    a, b = sides
    try:
        predictions.require_same_examples(a, b)
    except NotUsable as reason:
        return Unusable((paired.a.label, paired.b.label), str(reason))
    return a, b


def _bootstrap(
    paired: Paired, sides: Sequence[tuple[Predictions, Predictions]], resamples: int
) -> tuple[Interval, list[Interval]]:
    models = [side[place] for place in (0, 1) for side in sides]
    a, b = (np.stack([side[place].values for side in sides]) for place in (0, 1))
    additive = predictions.additive(paired.metric, models)
    return examples.bootstrap(paired.metric, sides[0][0].labels, a, b, resamples, sides[0][0].classes, additive)


def _mcnemar(a: Predictions, b: Predictions, metric: str) -> McNemar | None:
    right_a, right_b = a.right(metric), b.right(metric)
    return None if right_a is None or right_b is None else examples.mcnemar(right_a, right_b)


def _adjusted(done: Sequence[Outcome], refused: list[Paired]) -> Outcomes:
    several = [outcome for outcome in done if outcome.seeds.n > 1]
    t = iter(holm([1.0 if outcome.seeds.p is None else outcome.seeds.p for outcome in several]))
    flip = iter(holm([outcome.seeds.p_flip for outcome in several if outcome.seeds.p_flip is not None]))
    tests = [one.mcnemar.p for outcome in done for one in outcome.examples.by_seed.values() if one.mcnemar]
    mcnemar = iter(holm(tests))
    floors = [outcome.seeds.flip_floor for outcome in several if outcome.seeds.flip_floor is not None]
    lowest = min(floors, default=1.0) * len(floors)  # by Holm, of the smallest p of the family; no other is below it
    adjusted = []
    for outcome in done:
        if outcome.seeds.n > 1:
            t_holm, over = next(t), outcome.seeds
            outcome = replace(
                outcome,
                flip_holm=next(flip),
                t_holm=None if over.p is None else t_holm,
                flip_can_tell=max(lowest, over.flip_floor or 0.0) < ALPHA,
                smallest=None if over.sd is None else seeds.smallest_shown(over.sd, over.n, len(several)),
            )
        by_seed = {
            seed: replace(one, holm=next(mcnemar)) if one.mcnemar else one
            for seed, one in outcome.examples.by_seed.items()
        }
        adjusted.append(replace(outcome, examples=replace(outcome.examples, by_seed=by_seed)))
    return Outcomes(adjusted, refused, len(several), len(tests))
