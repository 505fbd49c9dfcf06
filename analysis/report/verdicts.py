"""Every row against a baseline, as `compare --all` does it."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.comparison import sides
from analysis.records.runs import RunSet
from analysis.report.images import Image, image
from analysis.tables.footnotes import Note
from analysis.tables.rows import Row, Rows

MOST_ROWS = 100  # that are compared unasked
RESAMPLES = 2000
# The method that the others are variants of: where a study has it, that is what a reader asks about.
USUAL = "lora"
_CAPTION = "Average ranks of all rows over the tasks that all of them have (Friedman's and Nemenyi's tests)."


@dataclass(frozen=True)
class Value:
    """A number as it is read, and as it is sorted by."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Line:
    """One row on one task against the baseline."""

    row: str
    number: int  # the row's place in the table
    task: str
    metric: str
    word: str  # what the row is: better, worse, …
    cells: tuple[Value, ...]  # by `HEADS`
    sentence: str


HEADS = ("its mean", "baseline's", "difference", "sd", "n", "95 % interval", "p by Holm", "g_z")


@dataclass(frozen=True)
class Verdicts:
    """What was compared. why_none: why nothing was, and then all else is empty."""

    baseline: str = ""
    why: str = ""  # this baseline
    why_none: str = ""
    lines: tuple[Line, ...] = ()
    tally: tuple[tuple[str, int], ...] = ()  # how often each word was said
    over_tasks: tuple[str, ...] = ()
    picture: Image | None = None  # the critical-difference diagram, where ranks can be tested
    notes: tuple[Note, ...] = ()


def build(found: RunSet, all_rows: Rows, baseline: str | None, pictures: bool) -> Verdicts:
    """Compares all rows with `baseline`, or with a row that suits. Raises `AnalysisError` for a name that is no row."""
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
    return _computed(found, all_rows, compared, why, pictures)


def choose(all_rows: Rows) -> tuple[Row, str] | None:
    """The row to compare all others with and why it is, or None where no two rows have a task and a seed in common."""
    seeds = [{(task, run.record.seed) for task, own in row.runs.items() for run in own} for row in all_rows.rows]
    shared = [sum(len(own & other) for other in seeds if other is not own) for own in seeds]
    usual = [place for place, row in enumerate(all_rows.rows) if row.variant == USUAL and shared[place]]
    candidates = usual or [place for place, count in enumerate(shared) if count]
    if not candidates:
        return None
    place = max(candidates, key=lambda place: shared[place])  # the first of equals
    row = all_rows.rows[place]
    if usual:
        return row, "the method that the others are variants of; --baseline names another"
    return row, "of all rows it has the most seeds in common with others; --baseline names another"


def _computed(found: RunSet, all_rows: Rows, compared: sides.Sides, why: str, pictures: bool) -> Verdicts:
    # What follows is about numbers, and brings scipy.
    from analysis.comparison import figure, flags, outcome, overall, text, verdict, words

    outcomes = outcome.compute(compared, all_rows.tasks, RESAMPLES)
    verdicts = [verdict.judge(one, outcomes.t_tests) for one in outcomes.done]
    assert compared.baseline is not None
    places = {id(row): place for place, row in enumerate(all_rows.rows)}
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
            Line(a.label, places[id(a)], one.paired.task, scale.metric, judged.word, tuple(cells), judged.text)
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
        over_tasks=tuple(text.over_tasks(ranks)),
        picture=picture,
        notes=tuple(flags.build(found, all_rows, compared, outcomes, RESAMPLES)),
    )
