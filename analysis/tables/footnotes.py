"""Writes the lines below a table: definitions of its numbers, and problems with its runs."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.records import settings
from analysis.records.provenance import Provenance
from analysis.records.runs import RunSet, Skipped
from analysis.tables import glue, mixed_code
from analysis.tables.averages import Averages, Ranks
from analysis.tables.cells import Grid
from analysis.tables.published import Paper
from analysis.tables.rows import Row, Rows
from analysis.text.numbers import human
from analysis.text.phrases import names, runs
from analysis.text.sorting import natural
from trainer.record import FILENAME

_MOST_ERROR = 300  # characters


@dataclass(frozen=True)
class Note:
    """One line. problem: whether something is wrong with the runs; otherwise it explains the table."""

    text: str
    problem: bool = False


def build(
    run_set: RunSet,
    rows: Rows,
    grid: Grid,
    averages: Averages | None = None,
    ranks: Ranks | None = None,
    papers: Sequence[Paper] = (),
    *,
    underlined: bool = False,
) -> list[Note]:
    """All lines below a table, in order. underlined: whether the format marks the second best."""
    provenance = run_set.provenance()
    explanations = [
        *_spread(grid),
        *_metrics(grid, underlined),
        *(_averages(grid, averages) if averages else ()),
        *(_ranks(grid, ranks) if ranks else ()),
        *protocols((point.task, point.protocol) for point in run_set.having("done")),
        *_other_metric(run_set),
        *positives((point.task, point.protocol) for point in run_set.having("done")),
        *_final_forms(grid),
        *_costs(grid),
        *_compared(rows, grid),
        *_published(grid, papers),
    ]
    problems = [
        *mixed_code.notes(rows.rows),
        *provenance.mixed(),
        *_twice(grid),
        *failed(rows),
        *_blank(grid),
        *pruned(run_set),
        *_lacking(run_set),
        *left_out(run_set),
    ]
    return [
        *(Note(text) for text in explanations),
        *([code(provenance, rows.rows)] if provenance else ()),
        *(Note(text, problem=True) for text in problems),
    ]


def code(provenance: Provenance, rows: Sequence[Row]) -> Note:
    """The commits of the runs, with the cells of all but the commonest.

    Several commits, or a dirty tree, are a problem.
    """
    several = [] if provenance.one_commit else rows
    by_commit = mixed_code.cells(several, lambda record: record.git.get("commit") or "")
    text, wrong = provenance.code({commit: [name for name, _ in counts] for commit, counts in by_commit.items()})
    return Note(text, problem=wrong)


def pruned(run_set: RunSet) -> Iterator[str]:
    """The number of pruned runs; the remaining runs of their search are a biased, better subset."""
    if count := run_set.count("pruned"):
        several = count != 1
        yield (
            f"{count} run{'s' * several} {'were' if several else 'was'} stopped by a search and "
            f"{'are' if several else 'is'} in no cell; the search chose the remaining runs by their scores."
        )


def left_out(skipped: Skipped) -> Iterator[str]:
    """Everything in the folders that was skipped, without failed runs."""
    yield from (f"Not used, can't be trusted: {reason}" for reason in skipped.untrusted)
    yield from (f"Not ended, or killed: {folder}: no {FILENAME}" for folder in skipped.begun)
    yield from _duplicates(skipped)
    yield from (f"Nothing found: {reason}" for reason in skipped.empty)


def _spread(grid: Grid) -> Iterator[str]:
    counts = {cell.n for line in grid.cells for cell in line if cell.n}
    if not counts:
        yield "No run is done: there are no numbers."
    elif counts == {1}:
        yield "Cells: value (n) with n = 1 run each: nothing is known about the spread over seeds."
    else:
        single = "; a cell with one run has no ±" if 1 in counts else ""
        yield (f"Cells: mean ± sd (n): sd is the standard deviation over seeds (ddof 1), n the number of runs{single}.")


def _metrics(grid: Grid, underlined: bool) -> Iterator[str]:
    scaled = [name for name, fraction in grid.fractions.items() if fraction]
    raw = [name for name, fraction in grid.fractions.items() if not fraction and name]
    parts = [f"×100: {', '.join(scaled)}"] if scaled else []
    parts += [f"as measured: {', '.join(raw)}"] if raw else []
    where = "of its column" if len(grid.groups) == 1 else "of its column among the rows of a group"
    if any(column.marks.best for column in grid.columns):
        parts.append(f"bold: the best mean {where} and its ties")
    if underlined and any(column.marks.second for column in grid.columns):
        parts.append("underlined: the second best and its ties")
    # Each part may be missing. A metric without a name is in neither list.
    sentence = "; ".join(parts)
    if sentence:
        yield sentence[0].upper() + sentence[1:] + "."
    for column in grid.columns:
        filled = sum(cell.n > 0 for cell in grid.column(column))
        if column.unmarked and filled > 1:
            yield f"No best is marked for {column.task}: {column.unmarked}."


def _averages(grid: Grid, averages: Averages) -> Iterator[str]:
    if averages.shown:
        tasks = [column.task for column in grid.columns]
        parts = [f"the mean over the {len(tasks)} tasks"]
        if any(spread and spread.sd is not None for spread in averages.spreads):
            parts[0] += ", ± its sd over seeds"
        if any(spread and not spread.n for spread in averages.spreads):
            parts.append("without (n) where the tasks of a row have different seeds")
        merged = [task for task in tasks if grid.glue and task in glue.AVERAGED]
        parts += [f"{task} counts with the mean of {' and '.join(glue.AVERAGED[task])}" for task in merged]
        yield f"Average: {'; '.join(parts)}{_only_complete(grid)}."
    elif averages.why_none:
        yield f"No average over tasks: {averages.why_none}."
    for label, task, metric in averages.lacking:
        yield f"No average for {label}: GLUE averages {metric}, which a run on {task} lacks."


def _ranks(grid: Grid, ranks: Ranks) -> Iterator[str]:
    if ranks.shown:
        within = " in its group" if len(grid.groups) > 1 else ""
        merged = [column.task for column in grid.columns if grid.glue and column.task in glue.AVERAGED]
        shown = f"; on {names(merged)} by the metric that its column shows" if merged else ""
        yield (
            f"Rank: the mean over tasks of the row's rank{within} by its mean; 1 is the best, ties share theirs"
            f"{shown}{_only_complete(grid)}."
        )
    elif ranks.why_none:
        yield f"No rank over tasks: {ranks.why_none}."


def _only_complete(grid: Grid) -> str:
    blank = any(not cell.n for line in grid.cells for cell in line)
    return "; rows without runs on every task have none" if blank else ""


_CHOSEN = {"dev": "chosen and ", "split": "chosen on a part of train, "}


def protocols(done: Iterable[tuple[str, Sequence[Any]]]) -> Iterator[str]:
    """One sentence for each protocol: the reported split, and the split that chose the checkpoint.

    done: task and protocol (`settings.protocol_of`) of the runs.
    """
    tasks: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for task, (_, checkpoint, split, _, protocol, _, _) in done:
        tasks[checkpoint or "", split or "", protocol or ""].add(task)
    everything = set().union(*tasks.values())
    for (checkpoint, split, protocol), here in sorted(tasks.items()):
        parts = [f"{checkpoint.capitalize()} checkpoint" if checkpoint else "Checkpoint not recorded"]
        chosen = _CHOSEN.get(protocol, "") if checkpoint == "best" and split else ""
        parts.append(f"{chosen}reported on {split}" if split else "split not recorded")
        parts.append(f"protocol {protocol}" if protocol else "protocol not recorded")
        which = "" if here == everything else f" ({names(here)})"
        yield f"{', '.join(parts)}{which}."


def _other_metric(run_set: RunSet) -> Iterator[str]:
    if run_set.metric is not None:
        yield (
            f"Metric: {run_set.metric}, as asked for, instead of each task's own. Best checkpoints were chosen by the "
            "task's own metric; the average uses the metric shown on every task."
        )


def _lacking(run_set: RunSet) -> Iterator[str]:
    """Done runs without the metric that was asked for."""
    by_task: dict[str, list[str]] = defaultdict(list)
    for run in run_set.lacking:
        by_task[run.record.task].append(run.record.variant)
    for task, variants in sorted(by_task.items(), key=lambda item: natural(item[0])):
        yield f"Left out, no {run_set.metric} in the record: {runs(len(variants))} on {task} ({names(set(variants))})"


def _final_forms(grid: Grid) -> Iterator[str]:
    """Rows whose runs changed in size, so that not every evaluation was a candidate for the best checkpoint."""
    changing = [row.label for row, spent in zip(grid.rows, grid.spent, strict=True) if spent.resized]
    if changing:
        yield (
            f"The best checkpoint is chosen among models in their final form; {names(changing)} changed in size "
            "while training, so that fewer evaluations may have competed than for the other rows."
        )


def positives(done: Iterable[tuple[str, Sequence[Any]]]) -> Iterator[str]:
    """The class of a binary F1. done: as in `protocols`."""
    tasks: dict[str, set[str]] = defaultdict(set)
    for task, (*_, positive, _) in done:
        if positive is not None:
            tasks[positive].add(task)
    for positive, here in sorted(tasks.items()):
        yield f"F1 on {names(here)} is that of class {positive!r}."


_COSTS = {
    "trainable_start": "trainable: parameters of the adapter at the start",
    "effective_end": "effective: what is not switched off at the end",
    "head": "the head is in neither",
    "file_bytes": "file: adapter and head on disk",
    "memory_bytes": "memory: weights, gradients, optimizer state and saved activations",
    "peak_rss_bytes": "peak RSS: the whole process",
    "cuda_train_allocated_bytes": "peak CUDA: allocated in training",
    "retention_after": "general: perplexity on general texts, of the model as it is and of the reported one",
}


def _costs(grid: Grid) -> Iterator[str]:
    over = "over the runs and tasks of a row" if len(grid.columns) > 1 else "over the runs of a row"
    meanings = [_COSTS[cost.key] for cost in grid.cost_columns if cost.key in _COSTS]
    if not grid.cost_columns:
        return
    meaning = "; ".join(meanings)
    yield f"Costs: means {over}.{f' {meaning[0].upper()}{meaning[1:]}.' if meaning else ''}"
    unequal = []
    for row, spent in zip(grid.rows, grid.spent, strict=True):
        low, high = spent.started or (0, 0)
        if low < high:
            unequal.append(f"{row.label} ({human(low)} to {human(high)})")
    if unequal:
        yield f"Trainable differs between the runs of {', '.join(unequal)}."


def _published(grid: Grid, papers: Sequence[Paper]) -> Iterator[str]:
    for paper in papers:
        remarks = "".join(f"; {remark}" for remark in paper.remarks(grid.columns))
        yield (
            f"{paper.name}: published by others under another protocol, in per cent as printed; never marked, and in "
            f"no average or rank. {paper.source}. {paper.protocol}{remarks}."
        )


def _compared(rows: Rows, grid: Grid) -> Iterator[str]:
    """Settings that differ within a row or a column and are not in the labels."""
    along: dict[str, list[str]] = defaultdict(list)
    for variant, others in rows.along.items():
        along[names(map(settings.short, others))].append(variant)
    for variant, values in sorted(rows.commonest.items(), key=lambda item: natural(item[0])):
        skipped = names(settings.label(name, value) for name, value in values.items())
        yield f"Unless a label of {variant} says otherwise: {skipped}."
    for skipped, variants in sorted(along.items()):
        yield f"Besides the settings in their labels, the rows of {names(variants)} differ in: {skipped}."
    within: dict[str, set[str]] = defaultdict(set)
    for row in grid.rows:
        # The settings of a task differ between tasks by definition.
        for name in settings.differing(points[0] for points in row.points.values()):
            if not name.startswith("config.task.") and name != "config.task":
                within[settings.short(name)].add(row.label)
    if within:
        parts = [
            name if len(labels) == len(grid.rows) else f"{name} ({names(labels)})"
            for name, labels in sorted(within.items(), key=lambda item: natural(item[0]))
        ]
        yield f"Settings that differ between the tasks of a row: {', '.join(parts)}."
    differ = {name for column in grid.columns for name in between(column.task, grid.rows)}
    if differ:
        yield f"Settings that differ between the rows of a column, besides the variant: {names(differ, most=30)}."


def between(task: str, rows: Sequence[Row]) -> Iterator[str]:
    """Settings in which rows differ on a task, without those of the variant, of the model and in the labels."""
    here = [row for row in rows if row.points.get(task)]
    some = [row.points[task][0] for row in here]
    labelled = {name for row in here for name, _ in row.distinguishing}
    several_models = len({point.model for point in some}) > 1
    differ = settings.differing(some)
    if len({point.value("steps.total") for point in some}) > 1:
        differ.add("steps.total")
    for name in differ - labelled:
        of_variant = name.startswith(settings.VARIANT) or name == "config.variant"
        of_model = name.startswith("config.model.") or name == "config.model"
        if not of_variant and not (of_model and several_models):
            yield settings.short(name)


def _twice(grid: Grid) -> Iterator[str]:
    """Seeds that a cell has more than once, so that n overstates the number of seeds."""
    for row, line in zip(grid.rows, grid.cells, strict=True):
        for column, cell in zip(grid.columns, line, strict=True):
            # The seeds are sorted.
            again = sorted({seed for seed, after in itertools.pairwise(cell.seeds) if seed == after})
            if again:
                yield f"Seed {names(map(str, again))} more than once in {row.label} on {column.task}."


def failed(rows: Rows) -> Iterator[str]:
    """Every failed run; runs with the same error share a line."""
    seeds: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    seen: set[str] = set()
    for row in rows.rows:
        for task in rows.tasks:
            for run in sorted(row.failed.get(task, ()), key=lambda run: run.record.run_id):
                if run.record.run_id not in seen:  # a failed run may belong to several rows
                    seen.add(run.record.run_id)
                    seeds[row.label, task, _one_line(run.record.error)].add(run.record.seed)
    for (label, task, error), numbers in seeds.items():
        word = "seed" if len(numbers) == 1 else "seeds"
        yield f"Failed: {label} on {task}, {word} {', '.join(map(str, sorted(numbers)))}: {error}"


def _one_line(error: str | None) -> str:
    lines = [line.strip() for line in (error or "").splitlines() if line.strip()]
    if not lines:
        return "no error recorded"
    # The last line of a traceback is the error.
    text = lines[-1] if lines[0].startswith("Traceback") else " ".join(lines)
    return text if len(text) <= _MOST_ERROR else text[: _MOST_ERROR - 1] + "…"


def _blank(grid: Grid) -> Iterator[str]:
    """One line for each task and reason why cells are blank."""
    for index, column in enumerate(grid.columns):
        reasons: dict[str, list[str]] = defaultdict(list)
        for row, line in zip(grid.rows, grid.cells, strict=True):
            cell = line[index]
            if not cell.n:
                reasons[f"{runs(cell.failed)} failed" if cell.failed else "no run"].append(row.label)
        for reason, labels in sorted(reasons.items()):
            yield f"Blank on {column.task}, {reason}: {', '.join(labels)}"


def _duplicates(skipped: Skipped) -> Iterator[str]:
    same = [duplicate for duplicate in skipped.duplicates if not duplicate.differs]
    if same:
        word = "was" if len(same) == 1 else "were"
        ids = names([duplicate.run_id for duplicate in same])
        yield f"Counted once: {runs(len(same))} that {word} found in more than one place: {ids}."
    for duplicate in skipped.duplicates:
        if duplicate.differs:
            others = ", ".join(map(str, duplicate.left_out))
            yield (
                f"Counted once, with different records: run {duplicate.run_id}: "
                f"used {duplicate.used}, left out {others}."
            )
