"""Writes a comparison as data: csv, one line for each level, and json, which has everything."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from typing import Any

from analysis.comparison.outcome import Outcome, Outcomes
from analysis.comparison.overall import Overall
from analysis.comparison.pooled import Pooled
from analysis.comparison.verdict import Verdict
from analysis.tables.footnotes import Note
from analysis.text import numbers
from analysis.text.formulas import inert


@dataclass(frozen=True)
class Line:
    """The results on one level. Metrics are as measured, never ×100; a difference is A − B."""

    a: str
    b: str
    task: str
    metric: str | None
    higher_is_better: bool | None
    level: str  # seeds; examples (mean over the seeds); examples of one seed
    seeds: str  # of the line, separated by spaces
    n: int | None  # paired seeds, or examples
    mean_a: float | None = None
    mean_b: float | None = None
    difference: float | None = None
    sd: float | None = None  # of the paired differences over seeds, ddof 1
    low: float | None = None  # of the 95 % interval: paired t over seeds, percentile bootstrap over examples
    high: float | None = None
    test: str | None = None  # of p: paired t, McNemar
    p: float | None = None
    p_holm: float | None = None
    p_flip: float | None = None
    p_flip_holm: float | None = None
    flip_floor: float | None = None
    g_z: float | None = None
    smallest_shown: float | None = None  # the smallest significant difference at this sd, with Holm's correction
    a_alone: int | None = None  # examples that only A predicts right
    b_alone: int | None = None
    verdict: str | None = None


def lines(outcomes: Outcomes, verdicts: Sequence[Verdict]) -> Iterator[Line]:
    """The lines of all outcomes, level by level."""
    for outcome, verdict in zip(outcomes.done, verdicts, strict=True):
        yield _seeds(outcome, verdict)
        yield from _examples(outcome)


def _seeds(outcome: Outcome, verdict: Verdict) -> Line:
    over_seeds = outcome.seeds
    return Line(
        *(*_names(outcome), "seeds", _joined(outcome.paired.seeds), over_seeds.n),
        *(over_seeds.mean_a, over_seeds.mean_b, over_seeds.difference, over_seeds.sd, over_seeds.low, over_seeds.high),
        test=None if over_seeds.p is None else "paired t",
        p=over_seeds.p,
        p_holm=outcome.t_holm,
        p_flip=over_seeds.p_flip,
        p_flip_holm=outcome.flip_holm,
        flip_floor=over_seeds.flip_floor,
        g_z=over_seeds.effect,
        smallest_shown=outcome.smallest,
        verdict=verdict.word,
    )


def _examples(outcome: Outcome) -> Iterator[Line]:
    examples, names = outcome.examples, _names(outcome)
    if examples.mean:
        yield Line(*names, "examples", _joined(examples.by_seed), examples.n, **asdict(examples.mean))
    for seed, one in examples.by_seed.items():
        line = Line(*names, "examples of one seed", str(seed), one.n, **asdict(one.interval))
        if one.mcnemar:
            line = replace(line, test="McNemar", p_holm=one.holm, **asdict(one.mcnemar))
        yield line


def _names(outcome: Outcome) -> tuple[str, str, str, str | None, bool | None]:
    paired = outcome.paired
    return paired.a.label, paired.b.label, paired.task, paired.metric or None, paired.higher_is_better


def _joined(seeds: Iterable[int]) -> str:
    return " ".join(map(str, seeds))


def render_csv(outcomes: Outcomes, verdicts: Sequence[Verdict]) -> str:
    """The whole csv file, with all digits."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([field.name for field in fields(Line)])
    for line in lines(outcomes, verdicts):
        writer.writerow(map(_cell, astuple(line)))
    return file.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return inert(value) if isinstance(value, str) else numbers.exact(value)


def render_json(
    outcomes: Outcomes,
    verdicts: Sequence[Verdict],
    together: Sequence[Pooled],
    overall: Overall,
    notes: Sequence[Note],
) -> str:
    """One object: `verdicts`, `tests` (the lines of the csv), `over_tasks_and_seeds` (in points, towards the better
    side), `not_compared`, `ranks`, `notes`."""
    content = {
        "verdicts": [
            {"a": outcome.paired.a.label, "b": outcome.paired.b.label, "task": outcome.paired.task, **asdict(verdict)}
            for outcome, verdict in zip(outcomes.done, verdicts, strict=True)
        ],
        "tests": [asdict(line) for line in lines(outcomes, verdicts)],
        "over_tasks_and_seeds": [asdict(one) | {"verdict": one.word} for one in together],
        "not_compared": [
            {"a": paired.a.label, "b": paired.b.label, "task": paired.task, "reason": paired.refused}
            for paired in outcomes.refused
        ],
        "ranks": _ranks(overall),
        "notes": [asdict(note) for note in notes],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _ranks(overall: Overall) -> dict[str, Any]:
    return {
        "rows": [row.label for row in overall.rows],
        "tasks": overall.tasks,
        "left_out": overall.left_out,
        "average": overall.average,
        "untested": overall.untested,
        "friedman": asdict(overall.friedman) if overall.friedman else None,
        "nemenyi_p": None if overall.nemenyi is None else overall.nemenyi.tolist(),
        "critical_difference": overall.critical_difference,
    }
