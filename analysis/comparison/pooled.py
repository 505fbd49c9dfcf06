"""Two rows on several tasks at once: differences paired by task and seed.

A difference counts in points (×100) towards the better side, so only tasks enter whose metric is printed ×100 and says
which direction is better, with the seeds that all of them have, so that every task weighs the same. The paired t and
the sign-flip test take the pairs of all tasks as one sample: where a method helps on some tasks and harms on others,
its spread grows, and the interval with it. Holm's correction is over the pairs of rows that one command compares.

    Bouthillier et al., "Accounting for Variance in Machine Learning Benchmarks", MLSys 2021
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from analysis.comparison import words
from analysis.comparison.outcome import Outcome, Outcomes
from analysis.comparison.sides import Sides
from analysis.comparison.verdict import scale_of
from analysis.stats import ALPHA, seeds
from analysis.stats.family import holm
from analysis.stats.seeds import OverSeeds
from analysis.tables.formats import markdown
from analysis.tables.formats.markdown import escape
from analysis.text import numbers

EQUAL = 1.0  # points: two rows are equal within this if the whole interval of their difference is


@dataclass(frozen=True)
class Pooled:
    """A − B in points over all pairs of the tasks. smallest: see `seeds.smallest_shown`."""

    a: str
    b: str
    tasks: tuple[str, ...]
    over: OverSeeds
    t_holm: float | None = None
    smallest: float | None = None

    @property
    def word(self) -> str:
        """better, worse, equal (on every pair), equal within EQUAL, or undecided: of A."""
        over = self.over
        if over.difference == 0 and not over.sd:
            return "equal"
        if self.t_holm is not None and self.t_holm < ALPHA:
            return "better" if over.difference > 0 else "worse"
        if over.low is not None and over.high is not None and max(-over.low, over.high) < EQUAL:
            return f"equal within {EQUAL:g}"
        return "undecided"


def build(sides: Sides, outcomes: Outcomes) -> list[Pooled]:
    """One for each pair of rows that has two comparable tasks or more, and two seeds on all of them."""
    found: list[Pooled] = []
    for a, b in sides.pairs:
        here = [o for o in outcomes.done if (o.paired.a, o.paired.b) == (a, b) and _comparable(o)]
        common = set.intersection(*(set(outcome.paired.seeds) for outcome in here)) if len(here) > 1 else set()
        if len(common) < 2:
            continue
        pairs = [pair for outcome in here for pair in _points(outcome, common)]
        over = seeds.over_seeds([ours for ours, _ in pairs], [theirs for _, theirs in pairs])
        found.append(Pooled(a.label, b.label, tuple(outcome.paired.task for outcome in here), over))
    adjusted = holm([1.0 if one.over.p is None else one.over.p for one in found])
    return [
        replace(
            one,
            t_holm=None if one.over.p is None else p,
            smallest=None if one.over.sd is None else seeds.smallest_shown(one.over.sd, one.over.n, len(found)),
        )
        for one, p in zip(found, adjusted, strict=True)
    ]


def _points(outcome: Outcome, common: set[int]) -> Iterator[tuple[float, float]]:
    """The metric of A and of B for these seeds, in points that grow towards the better side."""
    sign = 100 if outcome.paired.higher_is_better else -100
    for seed, ours, theirs in zip(outcome.paired.seeds, *outcome.paired.values(), strict=True):
        if seed in common:
            yield sign * ours, sign * theirs


def _comparable(outcome: Outcome) -> bool:
    return outcome.paired.higher_is_better is not None and scale_of(outcome).fraction


def table(pooled: Sequence[Pooled]) -> list[str]:
    """A line for each pair of rows, in Markdown; empty where there is none."""
    if not pooled:
        return []
    one_baseline = len({one.b for one in pooled}) == 1
    head = [
        *("row", "tasks", "pairs", f"row − {escape(pooled[0].b)}" if one_baseline else "difference", "sd"),
        *("95 % interval", "shown from", "paired t p (Holm)", "sign-flip p", "verdict"),
    ]
    body = []
    for one in pooled:
        over = one.over
        places = numbers.decimals(over.sd, 2)
        body.append(
            [
                escape(one.a if one_baseline else f"{one.a} − {one.b}"),
                *(str(len(one.tasks)), str(over.n)),
                *(_fixed(value, places) for value in (over.difference, over.sd)),
                "" if over.low is None else f"{_fixed(over.low, places)} to {_fixed(over.high, places)}",
                _fixed(one.smallest, places),
                words.with_holm(over.p, one.t_holm),
                words.p_value(over.p_flip),
                one.word,
            ]
        )
    alike = len({one.tasks for one in pooled}) == 1
    tasks = words.listed(pooled[0].tasks) if alike else "the tasks that both rows have"
    return [f"Over tasks and seeds, in points ({tasks}):", "", *markdown.table(head, body)]


def sentences(pooled: Sequence[Pooled]) -> list[str]:
    """The same for a reader, one sentence for each pair of rows that is decided, and one for all others."""
    said = []
    for one in pooled:
        over, places = one.over, numbers.decimals(one.over.sd, 2)
        if one.word != "undecided":
            interval = f"{_fixed(over.low, places)} to {_fixed(over.high, places)}; Holm p {words.p_value(one.t_holm)}"
            said.append(
                f"Over {len(one.tasks)} tasks and {over.n} pairs of a task and a seed {one.a} is {one.word}"
                f" {'to' if one.word.startswith('equal') else 'than'} {one.b}: {_fixed(over.difference, places)} points"
                + (f" (95 % interval {interval})." if over.low is not None else " on every pair.")
            )
    if pooled:
        said.append(_undecided(pooled))
    return said


def _undecided(pooled: Sequence[Pooled]) -> str:
    """How many comparisons decide nothing, which, and what their designs could have shown."""
    open_ones = [one for one in pooled if one.word == "undecided"]
    told = f"Over tasks and seeds together {len(open_ones)} of {len(pooled)} comparisons are undecided"
    if not open_ones:
        return f"{told}."
    one_baseline = len({one.b for one in pooled}) == 1
    named = words.listed([one.a if one_baseline else f"{one.a} against {one.b}" for one in open_ones])
    shown = sorted(one.smallest for one in open_ones if one.smallest is not None)
    if not shown:
        return f"{told}: {named}."
    least, most = (numbers.fixed(value, 1) for value in (shown[0], shown[-1]))
    return f"{told}: {named}; they could have shown {least if least == most else f'{least} to {most}'} points or more."


def _fixed(value: float | None, places: int) -> str:
    return "" if value is None else numbers.fixed(value, places)
