"""Whether the ranks that a row's runs end with agree between seeds, and between tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.comparison import words
from analysis.records import run_files
from analysis.records.run_files import Unusable
from analysis.records.runs import Run, RunSet
from analysis.stats import ALPHA
from analysis.stats.agreement import SHUFFLES, Agreement, between
from analysis.stats.family import holm
from analysis.tables import footnotes, mixed_code
from analysis.tables.formats import markdown
from analysis.tables.formats.markdown import escape
from analysis.tables.rows import Row
from analysis.tables.rows import build as build_rows
from analysis.text.layer_grid import layout

TASKS = "between tasks"  # in the place of a task: all pairs of runs of different tasks


@dataclass(frozen=True)
class Line:
    """A row's agreement: between the seeds of a task, or between tasks. runs: how many there are."""

    row: str
    where: str
    runs: int
    found: Agreement
    p_holm: float


@dataclass(frozen=True)
class Allocations:
    """lines: of rows whose runs differ in their ranks. left_out: what has no line, with the reason.

    problems: variants with mixed code, and folders that are not used.
    """

    lines: list[Line]
    left_out: list[str]
    problems: list[str]


def build(runs: RunSet) -> Allocations:
    """The agreement of every row with two runs or more; p values have Holm's correction over all lines."""
    rows = build_rows(runs)
    sets: list[
        tuple[str, str, list[np.ndarray], list[int]]
    ] = []  # row, task, (runs, layers) each, module of each layer
    left_out: list[str] = []
    for row in rows.rows:
        try:
            by_task, modules = _read(row, rows.tasks)
        except Unusable as error:
            left_out.append(f"{row.label} ({error})")
            continue
        sets.extend((row.label, task, [one[None] for one in all_], modules) for task, all_ in by_task.items())
        sets.append((row.label, TASKS, list(by_task.values()), modules))
    sets = [one for one in sets if len(one[2]) > 1]
    # So many that by Holm the smallest p of all lines can be below `ALPHA`.
    shuffles = max(SHUFFLES, math.ceil(2 * len(sets) / ALPHA))
    found = [
        (label, where, sum(map(len, runs_of)), between(runs_of, modules, shuffles))
        for label, where, runs_of, modules in sets
    ]
    adjusted = holm([agreement.p for *_, agreement in found])
    problems = [*mixed_code.notes(rows.rows), *footnotes.left_out(runs)]
    return Allocations([Line(*line, p) for line, p in zip(found, adjusted, strict=True)], left_out, problems)


def _read(row: Row, tasks: Sequence[str]) -> tuple[dict[str, np.ndarray], list[int]]:
    """By task (runs, layers): final ranks; and the module of each layer. Raises `Unusable` where they can't agree."""
    if any(_ranks_are_given(run) for runs in row.runs.values() for run in runs):
        raise Unusable("its ranks are those of other runs")
    names: list[str] | None = None
    by_task: dict[str, np.ndarray] = {}
    for task in tasks:
        finals = [run_files.ranks(run.folder)[-1].ranks for run in row.runs.get(task, ())]
        for final in finals:
            names = list(final) if names is None else names
            if set(final) != set(names):
                raise Unusable("its runs adapted different layers")
        if finals and names is not None:
            by_task[task] = np.asarray([[final[name] for name in names] for final in finals], dtype=np.float64)
    if names is None:
        raise Unusable("no run is done")
    every = np.concatenate(list(by_task.values()))
    if (every == every[0]).all():
        raise Unusable("the same ranks in every run" if len(every) > 1 else "one run")
    grid = layout(names)
    return by_task, [grid.position[name][0] for name in names]


def _ranks_are_given(run: Run) -> bool:
    """Whether a control has its ranks from another run, so that it says nothing new of what methods find."""
    return any(f"{name}.".startswith("variant.ranks_from.") and value for name, value in run.record.config.items())


def table(allocations: Allocations) -> list[str]:
    """The lines in Markdown, then what their columns mean, what has none, and problems."""
    head = ["row", "task", "runs", "pairs", "overlap", "chance", "beyond chance", "in place", "p (Holm)"]
    body = [
        [
            *(escape(line.row), escape(line.where), str(line.runs), str(line.found.pairs)),
            *(f"{value:.3f}" for value in (line.found.overlap, line.found.chance)),
            f"{100 * line.found.beyond:.0f} %",
            f"{line.found.in_place:.3f}",
            words.with_holm(line.found.p, line.p_holm),
        ]
        for line in allocations.lines
    ]
    notes = [
        "Overlap: of final ranks, 2 Σ min / Σ sum over layers, mean over pairs of runs; 1 for equal allocations.",
        "Chance: its expectation with each run's ranks shuffled over all layers; beyond: (overlap − chance) / (1 − "
        "chance); in place: shuffled among layers of one module only, so the overlap that modules alone explain.",
        "p: permutation test that the overlap is no larger than chance; Holm's correction over all lines.",
    ]
    if allocations.left_out:
        notes.append(f"Without a line: {'; '.join(allocations.left_out)}.")
    notes += allocations.problems
    return [*(markdown.table(head, body) if body else []), "", *(f"- {escape(note)}" for note in notes)]
