"""`python -m analysis table`: variant × task, and what each variant costs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from analysis import grid, latex, markdown, notes, rows, runs, tidy
from analysis.verb import Verb, add_runs, emit, read_runs

FORMATS = ("md", "csv", "latex")
_ENDINGS = {".csv": "csv", ".tex": "latex"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `table`."""
    add_runs(parser)
    parser.add_argument("--format", choices=FORMATS, help="default: what the name of the output ends in, else md")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")


def run(options: argparse.Namespace) -> int:
    """Prints the table. Raises `AnalysisError` where there is no record to make it from."""
    output: Path | None = options.output
    form = options.format or _ENDINGS.get(output.suffix if output else "", "md")
    found = read_runs(options.runs)
    text, problems = render(found, form)
    emit(text, output)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 0


def render(found: runs.Found, form: str) -> tuple[str, list[str]]:
    """The table as text, and the problems that this format has no room for."""
    all_rows = rows.build(found)
    table = grid.build(all_rows)
    lines = notes.build(found, all_rows, table)
    if form == "csv":
        return tidy.render(table), [markdown.one_line(note.text) for note in lines if note.problem]
    return (latex.render if form == "latex" else markdown.render)(table, lines), []


VERB = Verb(
    name="table",
    summary="variant × task with mean ± sd over seeds, and costs",
    description=(
        "One row for each variant (several, labelled with what differs, where its runs differ in more\n"
        "than their seed), one column for each task, then parameters, memory and time.\n"
        "Rows are sorted by variant, model and settings, tasks by name, numbers in names by size.\n"
        "Failed, corrupt and duplicate runs are listed below the table (csv: on standard error)."
    ),
    example=(
        "python -m analysis table runs/demo\n"
        "python -m analysis table runs/demo runs/more --format latex --output table.tex"
    ),
    add_arguments=add_arguments,
    run=run,
)
