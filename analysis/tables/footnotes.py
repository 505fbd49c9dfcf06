"""What stands below a table: what its numbers are, and everything that a reader must not miss."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.records import settings
from analysis.records.provenance import Provenance, counted
from analysis.records.runs import RunSet, Skipped
from analysis.tables import glue
from analysis.tables.averages import Averages, Ranks
from analysis.tables.cells import Grid
from analysis.tables.published import Paper
from analysis.tables.rows import Row, Rows
from analysis.text.numbers import human
from analysis.text.phrases import names, runs
from analysis.text.sorting import natural
from trainer.record import FILENAME, Record

_MOST_ERROR = 300  # characters


@dataclass(frozen=True)
class Note:
    """One line. A `problem` is something wrong with the runs, not an explanation of the table."""

    text: str
    problem: bool = False


def build(
    found: RunSet,
    rows: Rows,
    grid: Grid,
    averages: Averages | None = None,
    ranks: Ranks | None = None,
    papers: Sequence[Paper] = (),
    *,
    underlined: bool = False,
) -> list[Note]:
    """All lines below a table, in their order. underlined: whether the format marks the second best."""
    provenance = found.provenance()
    explanations = [
        *_spread(grid),
        *_metrics(grid, underlined),
        *(_averages(grid, averages) if averages else ()),
        *(_ranks(grid, ranks) if ranks else ()),
        *protocols((point.task, point.protocol) for point in found.having("done")),
        *_other_metric(found),
        *positives((point.task, point.protocol) for point in found.having("done")),
        *_final_forms(grid),
        *_costs(grid),
        *_compared(rows, grid),
        *_published(grid, papers),
    ]
    problems = [
        *methods(rows.rows),
        *provenance.mixed(),
        *_twice(grid),
        *failed(rows),
        *_blank(grid),
        *pruned(found),
        *_lacking(found),
        *left_out(found),
    ]
    return [
        *(Note(text) for text in explanations),
        *([code(provenance, rows.rows)] if provenance else ()),
        *(Note(text, problem=True) for text in problems),
    ]


def code(provenance: Provenance, rows: Sequence[Row]) -> Note:
    """The commits that runs were made with, and the cells of all but the commonest. More than one, or a dirty tree, is
    a problem."""
    cells = _cells(rows, lambda record: record.git.get("commit") or "")
    text, wrong = provenance.code({value: [name for name, _ in own] for value, own in cells.items()})
    return Note(text, problem=wrong)


def methods(rows: Sequence[Row]) -> Iterator[str]:
    """Methods whose own code differs between the runs of a table: a mean over them is no mean of one method."""
    by_variant: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_variant[row.variant].append(row)
    for variant, own in by_variant.items():
        cells = _cells(own, lambda record: record.code.get("variant", ""))
        if len(cells) > 1:
            found = {value: sum(n for _, n in places) for value, places in cells.items()}
            where = {value: [name for name, _ in places] for value, places in cells.items()}
            listed = counted(found, where, lambda value: f"code {value[:10]}" if value else "code not recorded")
            yield f"Mixed code of {variant} in one comparison: {listed}."


def _cells(rows: Sequence[Row], of: Callable[[Record], str]) -> dict[str, list[tuple[str, int]]]:
    """By value, the cells that have done runs of it (failed ones where none is done), and how many."""
    done = any(row.runs for row in rows)
    found: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for row in rows:
        label = row.label
        for task, own in (row.runs if done else row.failed).items():
            for value, number in Counter(of(run.record) for run in own).items():
                found[value].append((f"{label} on {task}", number))
    return found


def pruned(found: RunSet) -> Iterator[str]:
    """How many runs a search stopped: what is left of it in a table is a choice of its better runs."""
    if count := found.count("pruned"):
        several = count != 1
        yield (
            f"{count} run{'s' * several} {'were' if several else 'was'} stopped by a search and "
            f"{'are' if several else 'is'} in no cell; the others of it were chosen by what they score."
        )


def left_out(listed: Skipped) -> Iterator[str]:
    """Everything in the folders that no number is from, failed runs apart."""
    yield from (f"Not used, can't be trusted: {reason}" for reason in listed.untrusted)
    yield from (f"Not ended, or killed: {folder}: no {FILENAME}" for folder in listed.begun)
    yield from _duplicates(listed)
    yield from (f"Nothing found: {reason}" for reason in listed.empty)


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
    # The sentence starts with what is there; a metric without a name is in none of the lists.
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
        yield f"No average for {label}: GLUE averages {metric} in, and a run on {task} has none."


def _ranks(grid: Grid, ranks: Ranks) -> Iterator[str]:
    if ranks.shown:
        within = " in its group" if len(grid.groups) > 1 else ""
        merged = [column.task for column in grid.columns if grid.glue and column.task in glue.AVERAGED]
        shown = f"; on {names(merged)} by the metric that its column shows" if merged else ""
        yield (
            f"Rank: the mean over tasks of the rank of a row's mean{within}, 1 for the best, ties share theirs"
            f"{shown}{_only_complete(grid)}."
        )
    elif ranks.why_none:
        yield f"No rank over tasks: {ranks.why_none}."


def _only_complete(grid: Grid) -> str:
    blank = any(not cell.n for line in grid.cells for cell in line)
    return "; rows without runs on every task have none" if blank else ""


_CHOSEN = {"dev": "chosen and ", "split": "chosen on a part of train, "}


def protocols(done: Iterable[tuple[str, Sequence[Any]]]) -> Iterator[str]:
    """Which split the numbers are from, and on which the checkpoint was chosen. done: tasks of runs, and what they
    reported, as `settings.protocol` has it."""
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


def _other_metric(found: RunSet) -> Iterator[str]:
    if found.metric is not None:
        yield (
            f"Shown is {found.metric}, asked for in the place of the tasks' own metric: best checkpoints were chosen "
            "by that one, and the average counts every task with what its column shows."
        )


def _lacking(found: RunSet) -> Iterator[str]:
    """Done runs that don't have the metric that was asked for."""
    by_task: dict[str, list[str]] = defaultdict(list)
    for run in found.lacking:
        by_task[run.record.task].append(run.record.variant)
    for task, variants in sorted(by_task.items(), key=lambda item: natural(item[0])):
        yield f"Left out, no {found.metric} in the record: {runs(len(variants))} on {task} ({names(set(variants))})"


def _final_forms(grid: Grid) -> Iterator[str]:
    """Methods that change their size: not every evaluation of theirs may compete for the best checkpoint."""
    changing = [row.label for row, spent in zip(grid.rows, grid.spent, strict=True) if spent.resized]
    if changing:
        yield (
            f"The best checkpoint is chosen among models in their final form; {names(changing)} changed in size "
            "while training, so that fewer evaluations may have competed than for the other rows."
        )


def positives(done: Iterable[tuple[str, Sequence[Any]]]) -> Iterator[str]:
    """Of which class an F1 is. done: as `protocols` has it."""
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
        yield f"Trainable is not one number within {', '.join(unequal)}."


def _published(grid: Grid, papers: Sequence[Paper]) -> Iterator[str]:
    for paper in papers:
        remarks = "".join(f"; {remark}" for remark in paper.remarks(grid.columns))
        yield (
            f"{paper.name}: numbers of other people under another protocol, in per cent as printed, never marked and "
            f"in no average of ours. {paper.source}. {paper.protocol}{remarks}."
        )


def _compared(rows: Rows, grid: Grid) -> Iterator[str]:
    """Settings in which the numbers of a line, or of a column, differ besides what labels say."""
    along: dict[str, list[str]] = defaultdict(list)
    for variant, others in rows.along.items():
        along[names(map(settings.short, others))].append(variant)
    for variant, values in sorted(rows.commonest.items(), key=lambda item: natural(item[0])):
        listed = names(settings.label(name, value) for name, value in values.items())
        yield f"Where a label of {variant} does not say otherwise: {listed}."
    for listed, variants in sorted(along.items()):
        yield f"Along with what their labels say, the rows of {names(variants)} differ in: {listed}."
    within: dict[str, set[str]] = defaultdict(set)
    for row in grid.rows:
        # What belongs to a task is its own affair.
        for name in settings.differing(own[0] for own in row.points.values()):
            if not name.startswith("config.task.") and name != "config.task":
                within[settings.short(name)].add(row.label)
    if within:
        parts = [
            name if len(labels) == len(grid.rows) else f"{name} ({names(labels)})"
            for name, labels in sorted(within.items(), key=lambda item: natural(item[0]))
        ]
        yield f"Within a row, from task to task, differ: {', '.join(parts)}."
    differ = {name for column in grid.columns for name in between(column.task, grid.rows)}
    if differ:
        yield f"Within a column, from row to row, differ besides the variant: {names(differ, most=30)}."


def between(task: str, rows: Sequence[Row]) -> Iterator[str]:
    """Settings in which the rows differ on a task, besides the variant, the model and what labels say."""
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
    """A seed that is in a cell more than once makes n larger than it is."""
    for row, line in zip(grid.rows, grid.cells, strict=True):
        for column, cell in zip(grid.columns, line, strict=True):
            # They are in their order.
            again = sorted({seed for seed, after in itertools.pairwise(cell.seeds) if seed == after})
            if again:
                yield f"Seed {names(map(str, again))} more than once in {row.label} on {column.task}."


def failed(rows: Rows) -> Iterator[str]:
    """Every failed run, those with one error in one line."""
    seeds: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    seen: set[str] = set()
    for row in rows.rows:
        for task in rows.tasks:
            for run in sorted(row.failed.get(task, ()), key=lambda run: run.record.run_id):
                if run.record.run_id not in seen:  # it may belong to several rows
                    seen.add(run.record.run_id)
                    seeds[row.label, task, _one_line(run.record.error)].add(run.record.seed)
    for (label, task, error), numbers in seeds.items():
        word = "seed" if len(numbers) == 1 else "seeds"
        yield f"Failed: {label} on {task}, {word} {', '.join(map(str, sorted(numbers)))}: {error}"


def _one_line(error: str | None) -> str:
    lines = [line.strip() for line in (error or "").splitlines() if line.strip()]
    if not lines:
        return "no error recorded"
    # The last line of a traceback says what happened.
    text = lines[-1] if lines[0].startswith("Traceback") else " ".join(lines)
    return text if len(text) <= _MOST_ERROR else text[: _MOST_ERROR - 1] + "…"


def _blank(grid: Grid) -> Iterator[str]:
    """Why cells are blank: one line for each task and reason."""
    for place, column in enumerate(grid.columns):
        reasons: dict[str, list[str]] = defaultdict(list)
        for row, line in zip(grid.rows, grid.cells, strict=True):
            cell = line[place]
            if not cell.n:
                reasons[f"{runs(cell.failed)} failed" if cell.failed else "no run"].append(row.label)
        for reason, labels in sorted(reasons.items()):
            yield f"Blank on {column.task}, {reason}: {', '.join(labels)}"


def _duplicates(found: Skipped) -> Iterator[str]:
    same = [duplicate for duplicate in found.duplicates if not duplicate.differs]
    if same:
        word = "was" if len(same) == 1 else "were"
        ids = names([duplicate.run_id for duplicate in same])
        yield f"Counted once: {runs(len(same))} that {word} found in more than one place: {ids}."
    for duplicate in found.duplicates:
        if duplicate.differs:
            others = ", ".join(map(str, duplicate.left_out))
            yield (
                f"Counted once, with different records: run {duplicate.run_id}: "
                f"used {duplicate.used}, left out {others}."
            )
