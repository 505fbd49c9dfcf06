"""`python -m analysis table`: variant × task, and what each variant costs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.commands.command import Verb, add_runs, emit, read_runs
from analysis.records import runs
from analysis.tables import averages as summary
from analysis.tables import cells, footnotes, rows
from analysis.tables import published as papers
from analysis.tables import sheet as layout
from analysis.tables.formats import html, latex, long_csv, markdown

FORMATS = ("md", "csv", "latex", "html")
_ENDINGS = {".csv": "csv", ".tex": "latex", ".html": "html"}


@dataclass(frozen=True)
class Options:
    """What a table may be told besides its runs and its format."""

    group: str | None = None  # "budget", or None for one group
    memory: bool = False  # the parts of the memory as columns
    published: Sequence[str] = ()  # names of sets in published/


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `table`."""
    add_runs(parser)
    parser.add_argument("--format", choices=FORMATS, help="default: what the name of the output ends in, else md")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The arguments that say what is in the table."""
    parser.add_argument(
        "--group", choices=["budget"], help="budget: rows of one variant.budget stand together and are compared"
    )
    parser.add_argument(
        "--memory", action="store_true", help="also the parts of the memory: weights, gradients, optimizer, activations"
    )
    parser.add_argument(
        "--published",
        action="append",
        choices=papers.names(),
        default=[],
        metavar="SET",
        help=f"other people's numbers beside yours, may be repeated: {', '.join(papers.names())}",
    )


def options_of(arguments: argparse.Namespace) -> Options:
    """What `add_options` read."""
    return Options(arguments.group, arguments.memory, tuple(arguments.published))


def run(arguments: argparse.Namespace) -> int:
    """Prints the table. Raises `AnalysisError` where there is no record to make it from."""
    output: Path | None = arguments.output
    form = arguments.format or _ENDINGS.get(output.suffix if output else "", "md")
    text, problems = render(read_runs(arguments.runs), form, options_of(arguments))
    emit(text, output)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 0


PLAIN = Options()


def render(found: runs.Found, form: str, options: Options = PLAIN) -> tuple[str, list[str]]:
    """The table as text, and the problems that this format has no room for. Raises `AnalysisError`."""
    all_rows = rows.build(found)
    table = cells.build(
        all_rows, group_by_budget=options.group == "budget", memory=options.memory, every_cost=form == "csv"
    )
    averages, ranks = summary.averages(table), summary.ranks(table)
    beside = papers.beside(table, options.published)
    underlined = form in ("latex", "html")
    lines = footnotes.build(found, all_rows, table, averages, ranks, beside, underlined=underlined)
    if form == "csv":
        return long_csv.render(table, averages, ranks, beside), [
            markdown.one_line(note.text) for note in lines if note.problem
        ]
    sheet = layout.build(table, averages, ranks, beside)
    renderer = {"latex": latex, "html": html, "md": markdown}[form]
    return renderer.render(sheet, lines), []


VERB = Verb(
    name="table",
    summary="variant × task with mean ± sd over seeds, and costs",
    description=(
        "One row for each variant (several, labelled with what differs, where its runs differ in more\n"
        "than their seed), one column for each task, then the average over tasks as GLUE forms it, the\n"
        "average rank, parameters, memory and time. Rows are sorted by variant, model and settings, tasks\n"
        "by name, numbers in names by size. The memory is one column; --memory adds its parts.\n"
        "Failed, corrupt and duplicate runs are listed below the table (csv: on standard error)."
    ),
    example=(
        "python -m analysis table runs/demo\n"
        "python -m analysis table runs/demo runs/more --format latex --output table.tex\n"
        "python -m analysis table runs/glue --group budget --published adalora2023 --output glue.html"
    ),
    add_arguments=add_arguments,
    run=run,
)
