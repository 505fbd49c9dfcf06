"""What stands below a table: what its numbers are, and everything that a reader must not miss."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from analysis import settings
from analysis.grid import Grid
from analysis.numbers import human
from analysis.order import natural
from analysis.rows import Row, Rows
from analysis.runs import Found, Run

_MOST_NAMES = 10  # of a list that is a detail; failures and untrusted records are never cut
_MOST_ERROR = 300  # characters


@dataclass(frozen=True)
class Note:
    """One line. A `problem` is something wrong with the runs, not an explanation of the table."""

    text: str
    problem: bool = False


def build(found: Found, rows: Rows, grid: Grid) -> list[Note]:
    """All lines below a table, in their order."""
    explanations = [
        *_spread(grid),
        *_metrics(grid),
        *protocols(found.done),
        *_costs(grid),
        *_compared(rows, grid),
    ]
    problems = [
        *mixed(found.done or found.failed),
        *_twice(grid),
        *failed(rows),
        *_blank(grid),
        *left_out(found),
    ]
    return [
        *(Note(text) for text in explanations),
        code(found.done or found.failed),
        *(Note(text, problem=True) for text in problems),
    ]


def left_out(found: Found) -> Iterator[str]:
    """Everything in the folders that no number is from, failed runs apart."""
    yield from (f"Not used, can't be trusted: {reason}" for reason in found.untrusted)
    yield from _duplicates(found)
    yield from (f"Nothing found: {reason}" for reason in found.empty)


def _spread(grid: Grid) -> Iterator[str]:
    counts = {cell.n for line in grid.cells for cell in line if cell.n}
    if not counts:
        yield "No run is done: there are no numbers."
    elif counts == {1}:
        yield "Cells: value (n) with n = 1 run each: nothing is known about the spread over seeds."
    else:
        single = "; a cell with one run has no ±" if 1 in counts else ""
        yield (f"Cells: mean ± sd (n): sd is the standard deviation over seeds (ddof 1), n the number of runs{single}.")


def _metrics(grid: Grid) -> Iterator[str]:
    scaled = [name for name, fraction in grid.fractions.items() if fraction]
    raw = [name for name, fraction in grid.fractions.items() if not fraction and name]
    parts = [f"×100: {', '.join(scaled)}"] if scaled else []
    parts += [f"as measured: {', '.join(raw)}"] if raw else []
    marked = "bold: the best mean of its column and its ties" if any(c.best for c in grid.columns) else ""
    # The sentence starts with what is there; a metric without a name is in none of the lists.
    sentence = "; ".join([*parts, *([marked] if marked else [])])
    if sentence:
        yield sentence[0].upper() + sentence[1:] + "."
    for column in grid.columns:
        if column.unmarked:
            yield f"No best is marked for {column.task}: {column.unmarked}."


_CHOSEN = {"dev": "chosen and ", "split": "chosen on a part of train, "}


def protocols(done: Iterable[Run]) -> Iterator[str]:
    """Which split the numbers are from, and on which the checkpoint was chosen."""
    tasks: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for run in done:
        metric, protocol = run.record.metric, run.record.data.protocol
        tasks[metric.checkpoint or "", metric.split or "", protocol or ""].add(run.record.task)
    everything = set().union(*tasks.values())
    for (checkpoint, split, protocol), here in sorted(tasks.items()):
        parts = [f"{checkpoint.capitalize()} checkpoint" if checkpoint else "Checkpoint not recorded"]
        chosen = _CHOSEN.get(protocol, "") if checkpoint == "best" and split else ""
        parts.append(f"{chosen}reported on {split}" if split else "split not recorded")
        parts.append(f"protocol {protocol}" if protocol else "protocol not recorded")
        which = "" if here == everything else f" ({_names(here)})"
        yield f"{', '.join(parts)}{which}."


def _costs(grid: Grid) -> Iterator[str]:
    over = "over the runs and tasks of a row" if len(grid.columns) > 1 else "over the runs of a row"
    yield (
        f"Costs: means {over}. trainable: parameters of the adapter at the start; effective: what is not "
        "switched off at the end; the head is in neither. memory: weights, gradients, optimizer state and "
        "saved activations; peak RSS: the whole process."
    )
    unequal = []
    for row in grid.rows:
        counts = [run.record.params.adapter_start for runs in row.runs.values() for run in runs]
        known = [count for count in counts if count is not None]
        if known and min(known) != max(known):
            unequal.append(f"{row.label} ({human(min(known))} to {human(max(known))})")
    if unequal:
        yield f"Trainable is not one number within {', '.join(unequal)}."


def _compared(rows: Rows, grid: Grid) -> Iterator[str]:
    """Settings in which the numbers of a line, or of a column, differ besides what labels say."""
    along: dict[str, list[str]] = defaultdict(list)
    for variant, names in rows.along.items():
        along[_names(map(settings.short, names))].append(variant)
    for listed, variants in sorted(along.items()):
        yield f"Along with what their labels say, the rows of {_names(variants)} differ in: {listed}."
    within: dict[str, set[str]] = defaultdict(set)
    for row in grid.rows:
        some = [runs[0].record for runs in row.runs.values()]
        # What belongs to a task is its own affair.
        for name in settings.differing(some, rows.seed_names):
            if not name.startswith("config.task.") and name != "config.task":
                within[settings.short(name)].add(row.label)
    if within:
        parts = [
            name if len(labels) == len(grid.rows) else f"{name} ({_names(labels)})"
            for name, labels in sorted(within.items(), key=lambda item: natural(item[0]))
        ]
        yield f"Within a row, from task to task, differ: {', '.join(parts)}."
    differ = {name for column in grid.columns for name in between(column.task, grid.rows, rows.seed_names)}
    if differ:
        yield f"Within a column, from row to row, differ besides the variant: {_names(differ, most=30)}."


def between(task: str, rows: Sequence[Row], seed_names: frozenset[str]) -> Iterator[str]:
    """Settings in which the rows differ on a task, besides the variant, the model and what labels say."""
    here = [row for row in rows if row.runs.get(task)]
    some = [row.runs[task][0].record for row in here]
    labelled = {name for row in here for name, _ in row.told_apart}
    several_models = len({record.model for record in some}) > 1
    differ = settings.differing(some, seed_names)
    if len({record.steps.total for record in some}) > 1:
        differ.add("steps.total")
    for name in differ - labelled:
        of_variant = name.startswith(settings.VARIANT) or name == "config.variant"
        of_model = name.startswith("config.model.") or name == "config.model"
        if not of_variant and not (of_model and several_models):
            yield settings.short(name)


def code(runs: Iterable[Run]) -> Note:
    """The commits that the runs were made with. More than one, or a dirty tree, is a problem."""
    commits: dict[str, int] = defaultdict(int)
    dirty = total = 0
    for run in runs:
        git = run.record.git
        commits[git.get("commit") or ""] += 1
        dirty += bool(git.get("dirty"))
        total += 1
    changed = f"; {_runs(dirty)} of {total} from a tree with uncommitted changes" if dirty else ""
    if len(commits) == 1:
        (commit,) = commits
        return Note(f"Code: {_commit(commit)}{changed}.", problem=bool(dirty) or not commit)
    listed = ", ".join(f"{_commit(c)} ({_runs(n)})" for c, n in sorted(commits.items()))
    return Note(f"Mixed code in one comparison: {listed}{changed}.", problem=True)


def _commit(commit: str) -> str:
    return f"commit {commit[:10]}" if commit else "commit not recorded"


def mixed(runs: Sequence[Run]) -> Iterator[str]:
    """Library versions and machines: numbers and times of different ones are hard to compare."""
    for title, field in (("Mixed library versions", "versions"), ("Mixed hardware", "hardware")):
        values: dict[str, set[str]] = defaultdict(set)
        for run in runs:
            for name, value in getattr(run.record, field).items():
                values[name].add(settings.text(value))
        parts = [f"{name} {_names(found)}" for name, found in sorted(values.items()) if len(found) > 1]
        if parts:
            yield f"{title} in one comparison: {'; '.join(parts)}."


def _twice(grid: Grid) -> Iterator[str]:
    """A seed that is in a cell more than once makes n larger than it is."""
    for row, line in zip(grid.rows, grid.cells, strict=True):
        for column, cell in zip(grid.columns, line, strict=True):
            seeds = [run.record.seed for run in cell.runs]
            again = sorted({seed for seed in seeds if seeds.count(seed) > 1}) if cell.n > 1 else []
            if again:
                yield f"Seed {_names(map(str, again))} more than once in {row.label} on {column.task}."


def failed(rows: Rows) -> Iterator[str]:
    """Every failed run, those with one error in one line."""
    seeds: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    seen: set[str] = set()
    for row in rows.rows:
        for task in rows.tasks:
            for run in row.failed.get(task, ()):
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
                reasons[f"{_runs(cell.failed)} failed" if cell.failed else "no run"].append(row.label)
        for reason, labels in sorted(reasons.items()):
            yield f"Blank on {column.task}, {reason}: {', '.join(labels)}"


def _duplicates(found: Found) -> Iterator[str]:
    same = [duplicate for duplicate in found.duplicates if not duplicate.differs]
    if same:
        word = "was" if len(same) == 1 else "were"
        ids = _names([d.used.record.run_id for d in same])
        yield f"Counted once: {_runs(len(same))} that {word} found in more than one place: {ids}."
    for duplicate in found.duplicates:
        if duplicate.differs:
            others = ", ".join(map(str, duplicate.left_out))
            yield (
                f"Counted once, with different records: run {duplicate.used.record.run_id}: "
                f"used {duplicate.used.folder}, left out {others}."
            )


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _names(names: Iterable[Any], most: int = _MOST_NAMES) -> str:
    ordered = sorted(names, key=lambda name: natural(str(name)))
    more = len(ordered) - most
    return ", ".join(map(str, ordered[:most])) + (f" and {more} more" if more > 0 else "")
