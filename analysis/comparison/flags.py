"""Writes the lines below a comparison: definitions of its numbers, and everything that weakens it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from analysis.comparison import words
from analysis.comparison.outcome import Outcome, Outcomes, Unusable
from analysis.comparison.pairs import Paired
from analysis.comparison.sides import Sides
from analysis.comparison.verdict import scale_of
from analysis.records import settings
from analysis.records.provenance import Provenance
from analysis.records.runs import RunSet
from analysis.stats import ALPHA, seeds
from analysis.tables import footnotes, mixed_code
from analysis.tables.footnotes import Note
from analysis.tables.rows import Rows
from analysis.text.numbers import human
from analysis.text.sorting import natural
from trainer.record import Record

# The largest relative difference between equal budgets.
_BUDGET = 0.01
_MOST_ROWS = 10  # in one line


def build(run_set: RunSet, rows: Rows, sides: Sides, outcomes: Outcomes, resamples: int | None) -> list[Note]:
    """All lines below a comparison, in order. resamples: as of `outcome.compute`."""
    runs = [run for outcome in outcomes.done for pair in outcome.paired.pairs for run in pair]
    provenance = Provenance.of(run.record for run in runs)
    explanations = [
        *_numbers(outcomes, resamples),
        *_floors(outcomes),
        *footnotes.protocols((run.record.task, settings.protocol_of(run.record)) for run in runs),
        *footnotes.positives((run.record.task, settings.protocol_of(run.record)) for run in runs),
        *_settings(rows, sides),
    ]
    problems = [
        *_unequal_budgets(outcomes.done),
        *_unlike_sides(sides, outcomes.done),
        *mixed_code.notes(sides.rows),
        *provenance.mixed(),
        *(line for outcome in outcomes.done for line in _unpaired(outcome.paired)),
        *(line for outcome in outcomes.refused for line in _refused(outcome)),
        *_without_examples(outcomes.done),
        *footnotes.failed(Rows(sides.rows, rows.tasks, {})),
        *footnotes.left_out(run_set),
    ]
    code = [footnotes.code(provenance, sides.rows)] if runs else []
    return [*map(Note, explanations), *code, *(Note(text, problem=True) for text in problems)]


def _numbers(outcomes: Outcomes, resamples: int | None) -> Iterator[str]:
    """Definitions of the numbers."""
    done = outcomes.done
    if not done:
        yield "No two runs share a seed: nothing is compared."
        return
    scales = {scale.metric: scale.fraction for scale in map(scale_of, done)}
    points = [metric for metric, fraction in sorted(scales.items()) if fraction]
    measured = [metric for metric, fraction in sorted(scales.items()) if not fraction and metric]
    if points:
        yield f"×100, differences in points: {words.listed(points)}."
    if measured:
        yield f"As measured: {words.listed(measured)}."
    if any(outcome.seeds.n > 1 for outcome in done):
        yield (
            "±, sd: standard deviation of the paired differences over seeds (ddof 1); n: paired seeds; p in brackets: "
            f"by Holm for the family, {words.times(outcomes.t_tests, 'test')} of its kind."
        )
        yield (
            f"Verdict: better, where Holm's p of the paired t test is below {ALPHA}; equal, where every paired seed "
            "has the same value; else the data don't say. g_z: mean over sd of the differences, Hedges-corrected."
        )
    if any(outcome.smallest is not None for outcome in done):
        among = "" if outcomes.t_tests == 1 else f", as the first of {outcomes.t_tests} tests by Holm"
        yield f"Shown from: the smallest mean difference that these seeds can distinguish from 0 at this sd{among}."
    if any(outcome.seeds.n == 1 for outcome in done):
        yield "With one paired seed nothing is known about the spread over seeds: no ±, no interval, no p over seeds."
    if any(outcome.seeds.n > 1 and outcome.seeds.p is None for outcome in done):
        yield "Differences without a spread have no t: they count in Holm's family as tests that did not reject."
    if any(outcome.examples.by_seed for outcome in done):
        text = (
            f"Over test examples: 95 % percentile bootstrap, {resamples:,} resamples, of the mean difference over the "
            "seeds at hand, the trained models as they are."
        )
        if outcomes.mcnemar_tests:
            text += (
                " McNemar by seed: examples that the first alone : the second alone gets right, exact p, in brackets "
                f"by Holm for {words.times(outcomes.mcnemar_tests, 'test')}; it is about two trained models."
            )
        yield text


def _floors(outcomes: Outcomes) -> Iterator[str]:
    """The smallest p of the sign-flip test, for each number of seeds."""
    done = outcomes.done
    for n in sorted({outcome.seeds.n for outcome in done} - {1}):
        floor = seeds.flip_floor(n)
        drawn = n > seeds.MOST_EXACT
        of = f"{2**seeds.MOST_EXACT + 1}, of so many drawn flips and the observed one," if drawn else f"2^{n}"
        text = f"n={n}: the sign-flip p can't be below 2/{of} = {words.p_value(floor)}"
        if floor >= ALPHA:
            text += f", so no permutation test over these seeds can reach {ALPHA}"
        elif not any(outcome.flip_can_tell for outcome in done if outcome.seeds.n == n):
            text += f"; by Holm, for {outcomes.t_tests} tests, none can reach {ALPHA}"
        yield f"{text}."


def _settings(rows: Rows, sides: Sides) -> Iterator[str]:
    for a, b in sides.pairs:
        shared = [task for task in rows.tasks if a.runs.get(task) and b.runs.get(task)]
        names = {name for task in shared for name in footnotes.between(task, [a, b])}
        if names:
            listed = words.listed(sorted(names, key=natural))
            yield f"Besides the variant and what the labels say, {a.label} and {b.label} differ in: {listed}."


# Properties in which the two runs of a pair should agree.
_ALIKE: dict[str, Callable[[Record], str | bool | None]] = {
    "model": lambda record: record.model,
    "protocol": lambda record: record.data.protocol,
    "checkpoint": lambda record: record.metric.checkpoint,
    "commit": lambda record: (record.git.get("commit") or "")[:10] or None,
    "uncommitted changes": lambda record: record.git.get("dirty"),
}


def _unlike_sides(sides: Sides, done: Sequence[Outcome]) -> Iterator[str]:
    """Properties in which the runs of pairs differ."""
    for a, b in sides.pairs:
        pairs = [
            pair for outcome in done if outcome.paired.a is a and outcome.paired.b is b for pair in _records(outcome)
        ]
        for what, of in _ALIKE.items():
            unlike = [(of(left), of(right)) for left, right in pairs if of(left) != of(right)]
            if unlike:
                left, right = ({_text(value) for value in side} for side in zip(*unlike, strict=True))
                yield (
                    f"The two runs of a pair differ in {what}, {len(unlike)} of {words.times(len(pairs), 'pair')}: "
                    f"{a.label} {words.listed(sorted(left))}; {b.label} {words.listed(sorted(right))}."
                )


def _text(value: str | bool | None) -> str:
    if value is None:
        return "not recorded"
    return value if isinstance(value, str) else settings.text(value)


def _records(outcome: Outcome) -> Iterator[tuple[Record, Record]]:
    return ((a.record, b.record) for a, b in outcome.paired.pairs)


def _unequal_budgets(done: Sequence[Outcome]) -> Iterator[str]:
    """Rows whose effective parameters differ by more than 1 % in some pair; tasks share a line."""
    tasks: dict[str, list[str]] = defaultdict(list)
    for outcome in done:
        counts = [(a.params.effective, b.params.effective) for a, b in _records(outcome)]
        known = [(a, b) for a, b in counts if a is not None and b is not None]
        names = f"{outcome.paired.a.label} and {outcome.paired.b.label}"
        if len(known) < len(counts):
            tasks[f"Whether the budgets of {names} are equal is not recorded"].append(outcome.paired.task)
        elif any(max(pair) > (1 + _BUDGET) * min(pair) for pair in known):
            means = (human(sum(side) / len(known)) for side in zip(*known, strict=True))
            text = f"Unequal budgets: {names} have {' and '.join(means)} effective parameters, over 1 % apart"
            tasks[text].append(outcome.paired.task)
    for text, where in tasks.items():
        yield f"{text} ({words.listed(where)})."


def _unpaired(paired: Paired) -> Iterator[str]:
    """Runs of the table that are not compared."""
    alone = [
        f"{row.label} {_seeds(only)}" for row, only in ((paired.a, paired.only_a), (paired.b, paired.only_b)) if only
    ]
    names = _names(paired)
    if alone:
        yield f"Unpaired, not used, {names}: {'; '.join(alone)}."
    if paired.repeated:
        yield f"More than once on a side, not used, {names}: {_seeds(paired.repeated)}."


def _refused(paired: Paired) -> Iterator[str]:
    yield f"Not compared, {_names(paired)}: {paired.refused}."
    yield from _unpaired(paired)


def _without_examples(done: Sequence[Outcome]) -> Iterator[str]:
    """Reasons why examples are not compared; rows with the same reason share a line."""
    where: dict[Unusable, list[str]] = defaultdict(list)
    for outcome in done:
        for why, missing in outcome.examples.unusable.items():
            task = f"{outcome.paired.task} {_seeds(missing)}"
            if task not in where[why]:  # a baseline is in many pairs
                where[why].append(task)
    rows: dict[tuple[str, str], list[str]] = defaultdict(list)
    for why, tasks_of in where.items():
        rows["; ".join(tasks_of), why.reason].append(" and ".join(why.rows))
    for (tasks, reason), names in rows.items():
        yield f"Not compared over test examples, {words.listed(names, _MOST_ROWS)} on {tasks}: {reason}."
    for outcome in done:
        if outcome.examples.by_seed and outcome.examples.mean is None:
            yield f"No mean over seeds of test examples, {_names(outcome.paired)}: each seed has other examples."


def _names(paired: Paired) -> str:
    return f"{paired.a.label} and {paired.b.label} on {paired.task}"


def _seeds(numbers: Iterable[int]) -> str:
    numbers = list(numbers)
    return f"seed{'' if len(numbers) == 1 else 's'} {words.listed(numbers)}"
