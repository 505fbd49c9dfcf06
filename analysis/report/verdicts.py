"""Compares every row with a baseline, as `compare --all` does."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.comparison import sides
from analysis.records.runs import RunSet
from analysis.report.images import Image, image
from analysis.tables.footnotes import Note
from analysis.tables.rows import Row, Rows

MOST_ROWS = 100  # rows that are compared without --baseline
RESAMPLES = 2000
# The method of which the others are variants; the usual baseline.
USUAL = "lora"
_CAPTION = "Average ranks of all rows over the tasks that all of them have (Friedman's and Nemenyi's tests)."


@dataclass(frozen=True)
class Value:
    """A number: its text, and the value by which it is sorted."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Line:
    """One row on one task against the baseline."""

    row: str
    number: int  # index of the row in the table
    task: str
    metric: str
    word: str  # the verdict on the row: better, worse, …
    cells: tuple[Value, ...]  # in the order of `HEADS`
    sentence: str


HEADS = ("its mean", "baseline's", "difference", "sd", "n", "95 % interval", "p by Holm", "g_z")


@dataclass(frozen=True)
class Verdicts:
    """The verdicts. why_none: why nothing was compared; then all other fields are empty."""

    baseline: str = ""
    why: str = ""  # the reason for this baseline
    why_none: str = ""
    lines: tuple[Line, ...] = ()
    tally: tuple[tuple[str, int], ...] = ()  # the number of lines with each word
    over_tasks: tuple[str, ...] = ()
    picture: Image | None = None  # the critical-difference diagram, if ranks can be tested
    notes: tuple[Note, ...] = ()


def build(runs: RunSet, all_rows: Rows, baseline: str | None, pictures: bool) -> Verdicts:
    """Compares all rows with `baseline`, or with `choose`. Raises `AnalysisError` if no row has that name."""
    if baseline is not None:
        chosen, why = sides.find(all_rows.rows, baseline), "as it was asked for"
        if len(all_rows.rows) < 2:
            return Verdicts(why_none=f"{chosen.label} is the only row")
    else:
        if len(all_rows.rows) > MOST_ROWS:
            return Verdicts(why_none=f"there are {len(all_rows.rows)} rows, and --baseline names none of them")
        picked = choose(all_rows)
        if picked is None:
            return Verdicts(why_none="no two rows have done runs on one task with one seed")
        chosen, why = picked
    compared = sides.Sides(tuple((row, chosen) for row in all_rows.rows if row is not chosen), chosen)
    return _computed(runs, all_rows, compared, why, pictures)


def choose(all_rows: Rows) -> tuple[Row, str] | None:
    """The baseline and the reason for it; None if no two rows share a task and a seed."""
    seeds = [{(task, run.record.seed) for task, runs in row.runs.items() for run in runs} for row in all_rows.rows]
    shared = [sum(len(these & other) for other in seeds if other is not these) for these in seeds]
    usual = [index for index, row in enumerate(all_rows.rows) if row.variant == USUAL and shared[index]]
    candidates = usual or [index for index, count in enumerate(shared) if count]
    if not candidates:
        return None
    row = all_rows.rows[max(candidates, key=lambda index: shared[index])]  # the first of equals
    if usual:
        return row, "the method that the others are variants of; --baseline names another"
    return row, "of all rows it has the most seeds in common with others; --baseline names another"


def _computed(runs: RunSet, all_rows: Rows, compared: sides.Sides, why: str, pictures: bool) -> Verdicts:
    # Imported here, because these import scipy.
    from analysis.comparison import figure, flags, outcome, overall, pooled, text, verdict, words

    outcomes = outcome.compute(compared, all_rows.tasks, RESAMPLES)
    verdicts = [verdict.judge(one, outcomes.t_tests) for one in outcomes.done]
    assert compared.baseline is not None
    numbers = {id(row): index for index, row in enumerate(all_rows.rows)}
    lines = []
    for one, judged in zip(outcomes.done, verdicts, strict=True):
        over, scale = one.seeds, verdict.scale_of(one)
        values = (over.mean_a, over.mean_b, over.difference, over.sd)
        cells = [Value(scale.number(value), value) for value in values]
        cells += [Value(str(over.n), over.n), Value(scale.interval(over.low, over.high), over.low)]
        cells += [Value(words.p_value(one.t_holm), one.t_holm)]
        cells += [Value("" if over.effect is None else f"{over.effect:.2f}", over.effect)]
        a = one.paired.a
        lines.append(
            Line(a.label, numbers[id(a)], one.paired.task, scale.metric, judged.word, tuple(cells), judged.text)
        )
    ranks = overall.build(compared.rows, all_rows.tasks)
    picture = None
    if pictures and not ranks.untested:
        picture = image("critical-difference", _CAPTION, figure.encode(ranks, "svg"), "svg", figure.size(ranks))
    said = [judged.word for judged in verdicts]
    return Verdicts(
        baseline=compared.baseline.label,
        why=why,
        lines=tuple(lines),
        tally=tuple((word, said.count(word)) for word in dict.fromkeys(sorted(said))),
        over_tasks=(*pooled.sentences(pooled.build(compared, outcomes)), *text.over_tasks(ranks)),
        picture=picture,
        notes=tuple(flags.build(runs, all_rows, compared, outcomes, RESAMPLES)),
    )
