"""What may be said of two rows on one task.

The rule, in this order:

1. *equal*: the two have the same metric on every paired seed.
2. *better* (or *worse*): two paired seeds or more, and Holm's adjusted p of the paired t test is
   below ALPHA. With a single test in the family this says that the paired t interval leaves 0 out.
   Where no run says which direction is the better one, it is *higher* (or *lower*).
3. *undecided* otherwise: the data don't say. One seed never decides.

Examples don't change the word, they qualify it: the seeds speak of this test set. Where the
bootstrap interval of the mean over seeds holds 0, a claim is for these test examples only, and
its sentence says so. A claim that stands has both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from analysis.comparison import words
from analysis.comparison.outcome import Outcome
from analysis.comparison.words import Scale
from analysis.stats import ALPHA
from analysis.stats.examples import Interval

Word = Literal["better", "worse", "higher", "lower", "equal", "undecided"]
_OPPOSITE: dict[Word, Word] = {"better": "worse", "higher": "lower"}


@dataclass(frozen=True)
class Verdict:
    """Of A and B: `word` is what A is, `text` a whole sentence."""

    word: Word
    text: str
    examples_agree: bool | None  # None without a claim, or without an interval over examples


def judge(outcome: Outcome, family: int) -> Verdict:
    """Applies the rule; `family` is the number of tests that Holm's correction is for."""
    seeds, paired = outcome.seeds, outcome.paired
    scale = scale_of(outcome)
    if seeds.difference == 0 and not seeds.sd:
        return Verdict("equal", _equal(outcome), None)
    if outcome.t_holm is None or outcome.t_holm >= ALPHA:
        return Verdict("undecided", _undecided(outcome, scale, family), None)
    # The sentence is about the one that is ahead, so that its difference is above zero.
    upwards = seeds.difference > 0
    ahead = upwards if paired.higher_is_better is not False else not upwards
    first, second = (paired.a, paired.b) if ahead else (paired.b, paired.a)
    comparative: Word = "higher" if paired.higher_is_better is None else "better"
    word: Word = comparative if ahead else _OPPOSITE[comparative]
    agree = None
    mean = outcome.examples.mean
    if mean is not None:
        agree = mean.low > 0 if upwards else mean.high < 0
    assert seeds.low is not None and seeds.high is not None
    over_seeds = Interval(seeds.difference, seeds.low, seeds.high)
    text = (
        f"{first.label} is {comparative} than {second.label} on {paired.task} by "
        f"{scale.number(abs(seeds.difference))} ± {scale.number(seeds.sd)} {scale.unit} "
        f"(n={seeds.n}; paired-t 95 % interval {_towards(over_seeds, upwards, scale)}; "
        f"Holm p {words.p_value(outcome.t_holm)})"
    )
    if paired.higher_is_better is None:
        text += "; whether higher is better, no run says"
    if mean is not None:
        bootstrap = f"bootstrap {_towards(mean, upwards, scale)}"
        if agree:
            text += f"; over test examples too ({bootstrap})"
        else:
            text += f"; on these test examples: over fresh ones the data don't say ({bootstrap})"
    return Verdict(word, f"{text}.", agree)


def scale_of(outcome: Outcome) -> Scale:
    """How the numbers of an outcome are printed."""
    a, b = outcome.paired.values()
    return words.scale(outcome.paired.metric, [*a, *b], outcome.seeds.sd, outcome.paired.percent)


def _towards(interval: Interval, upwards: bool, scale: Scale) -> str:
    """The interval of the difference, or of its opposite."""
    low, high = (interval.low, interval.high) if upwards else (-interval.high, -interval.low)
    return scale.interval(low, high)


def _equal(outcome: Outcome) -> str:
    paired, n = outcome.paired, outcome.seeds.n
    seeds = "one paired seed (n=1)" if n == 1 else f"each of {n} paired seeds"
    return f"{paired.a.label} and {paired.b.label} are equal on {paired.task}: the same value on {seeds}."


def _undecided(outcome: Outcome, scale: Scale, family: int) -> str:
    seeds, paired = outcome.seeds, outcome.paired
    start = f"On {paired.task} the data don't say: {paired.a.label} − {paired.b.label} = "
    value = scale.number(seeds.difference)
    if seeds.n == 1:
        return f"{start}{value} {scale.unit} with one paired seed (n=1){_two_models(outcome, scale)}."
    if seeds.p is None:
        return f"{start}{value} {scale.unit} on each of {seeds.n} seeds, and without a spread nothing measures noise."
    text = (
        f"{start}{value} ± {scale.number(seeds.sd)} {scale.unit} (n={seeds.n}; "
        f"paired-t 95 % interval {scale.interval(seeds.low, seeds.high)}; Holm p {words.p_value(outcome.t_holm)})"
    )
    if seeds.p < ALPHA:
        text += f"; the interval leaves 0 out, but that is not enough for one of {family} tests"
    if outcome.smallest is not None:
        text += f"; {seeds.n} seeds with this spread could have shown {scale.number(outcome.smallest)} or more"
    return f"{text}."


def _two_models(outcome: Outcome, scale: Scale) -> str:
    """What the examples say where there is one pair of models and nothing else."""
    mean = outcome.examples.mean
    if mean is None:
        return ""
    (one,) = outcome.examples.by_seed.values()
    text = f"; for these two models alone, bootstrap 95 % interval {scale.interval(mean.low, mean.high)}"
    if one.mcnemar:
        text += f", McNemar p {words.p_value(one.mcnemar.p)}"
    return f"{text} over {one.n} examples"
