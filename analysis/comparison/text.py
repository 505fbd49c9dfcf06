"""Writes a comparison as Markdown: the verdicts, then their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

from analysis.comparison import pooled, words
from analysis.comparison.outcome import Outcome, Outcomes
from analysis.comparison.overall import Overall
from analysis.comparison.pooled import Pooled
from analysis.comparison.sides import Sides
from analysis.comparison.verdict import Verdict, Word, scale_of
from analysis.stats import ALPHA
from analysis.tables.footnotes import Note
from analysis.tables.formats import markdown
from analysis.tables.formats.markdown import escape


def render(
    sides: Sides,
    outcomes: Outcomes,
    verdicts: Sequence[Verdict],
    together: Sequence[Pooled],
    overall: Overall,
    notes: Sequence[Note],
) -> str:
    """The whole text."""
    said = [*(verdict.text for verdict in verdicts), *tallies(sides, outcomes, verdicts)]
    blocks = [[f"- {escape(text)}" for text in said]]
    if outcomes.done:
        blocks.append(over_seeds(sides, outcomes.done))
    over_examples = [outcome for outcome in outcomes.done if outcome.examples.by_seed]
    if over_examples:
        blocks.append(_over_examples(sides, over_examples))
    blocks.append(pooled.table(together))
    blocks.append([f"- {escape(line)}" for line in over_tasks(overall)])
    blocks.append([f"- {escape(note.text)}" for note in notes])
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def tallies(sides: Sides, outcomes: Outcomes, verdicts: Sequence[Verdict]) -> Iterator[str]:
    """The number of tasks with each verdict, for pairs of rows with several tasks."""
    for a, b in sides.pairs:
        here = [v.word for o, v in zip(outcomes.done, verdicts, strict=True) if (o.paired.a, o.paired.b) == (a, b)]
        if len(here) > 1:
            counts = ", ".join(f"{word} on {here.count(word)}" for word in get_args(Word) if word in here)
            yield f"{a.label} against {b.label}, {len(here)} tasks: {counts}."


def over_tasks(overall: Overall) -> list[str]:
    """The average ranks and their tests, or why there are none."""
    lines = []
    order = sorted(range(len(overall.average)), key=lambda row: (overall.average[row], row))
    if order:
        ranked = words.listed(f"{overall.rows[row].label} ({overall.average[row]:.2f})" for row in order)
        tasks = f"{len(overall.tasks)} tasks ({words.listed(overall.tasks)})"
        lines.append(f"Average ranks over {tasks}, 1 the best: {ranked}.")
    if overall.left_out:
        lines.append(f"Not in the ranks: {'; '.join(overall.left_out)}.")
    if overall.untested:
        lines.append(f"No Friedman test, no Nemenyi test, no critical-difference figure: {overall.untested}.")
    if overall.friedman:
        lines.append(_tests(overall, order))
    return lines


def _tests(overall: Overall, order: Sequence[int]) -> str:
    friedman, freedom = overall.friedman, len(overall.rows) - 1
    assert friedman is not None
    if friedman.p is None:
        return "Friedman: all rows share one rank on every task."
    text = f"Friedman, corrected for ties: χ²({freedom}) = {friedman.chi2:.2f}, p {words.p_value(friedman.p)}: "
    if overall.nemenyi is None:
        return f"{text}not enough to say that any rows differ, so Nemenyi's test is not used."
    apart = [
        f"{overall.rows[a].label} before {overall.rows[b].label} (p {words.p_value(float(overall.nemenyi[a, b]))})"
        for position, a in enumerate(order)
        for b in order[position + 1 :]
        if overall.nemenyi[a, b] < ALPHA
    ]
    differing = words.listed(apart) if apart else "no two rows differ"
    return f"{text}some rows differ. Nemenyi, critical difference {overall.critical_difference:.2f}: {differing}."


def over_seeds(sides: Sides, done: Sequence[Outcome]) -> list[str]:
    """The table of differences over seeds, a line for each pair and task."""
    head = [
        *_first_columns(sides),
        *("metric", *_sides(sides), _difference(sides), "sd", "n", "95 % interval"),
        *("shown from", "paired t p (Holm)", "sign-flip p (Holm)", "its floor", "g_z"),
    ]
    body = []
    for outcome in done:
        seeds, scale = outcome.seeds, scale_of(outcome)
        body.append(
            [
                *_first_cells(sides, outcome),
                *(escape(scale.metric), scale.number(seeds.mean_a), scale.number(seeds.mean_b)),
                *(scale.number(seeds.difference), scale.number(seeds.sd), str(seeds.n)),
                scale.interval(seeds.low, seeds.high),
                scale.number(outcome.smallest),
                words.with_holm(seeds.p, outcome.t_holm),
                words.with_holm(seeds.p_flip, outcome.flip_holm) if outcome.flip_can_tell else _never(seeds.p_flip),
                words.p_value(seeds.flip_floor),
                "" if seeds.effect is None else f"{seeds.effect:.2f}",
            ]
        )
    return ["Over seeds:", "", *markdown.table(head, body)]


def _never(p: float | None) -> str:
    """The text in place of a p that could not have been small enough with any data."""
    return "" if p is None else f"can't be < {ALPHA}"


def _over_examples(sides: Sides, done: Sequence[Outcome]) -> list[str]:
    head = [*_first_columns(sides), "examples", "seeds", _difference(sides)]
    head += ["bootstrap 95 % interval", "McNemar by seed"]
    body = []
    for outcome in done:
        examples, scale = outcome.examples, scale_of(outcome)
        mean = examples.mean
        tests = [
            f"{seed}: {one.mcnemar.a_alone}:{one.mcnemar.b_alone} p {words.with_holm(one.mcnemar.p, one.holm)}"
            for seed, one in examples.by_seed.items()
            if one.mcnemar
        ]
        body.append(
            [
                *_first_cells(sides, outcome),
                "" if examples.n is None else str(examples.n),
                words.listed(examples.by_seed),
                scale.number(mean.difference) if mean else "",
                scale.interval(mean.low, mean.high) if mean else "",
                escape("; ".join(tests)),
            ]
        )
    return ["Over test examples:", "", *markdown.table(head, body)]


def _first_columns(sides: Sides) -> list[str]:
    if sides.is_one:
        return ["task"]
    return ["pair" if sides.baseline is None else "row", "task"]


def _first_cells(sides: Sides, outcome: Outcome) -> list[str]:
    a, b, task = (escape(name) for name in (outcome.paired.a.label, outcome.paired.b.label, outcome.paired.task))
    if sides.is_one:
        return [task]
    return [f"{a} − {b}" if sides.baseline is None else a, task]


def _sides(sides: Sides) -> list[str]:
    if sides.is_one:
        return [escape(row.label) for row in sides.pairs[0]]
    return ["first", "second"] if sides.baseline is None else ["row", escape(sides.baseline.label)]


def _difference(sides: Sides) -> str:
    return " − ".join(_sides(sides))
