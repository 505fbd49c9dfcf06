"""`python -m analysis table`: variants × tasks, with costs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.commands.command import Verb, add_runs, emit, read_runs
from analysis.errors import AnalysisError
from analysis.records import runs
from analysis.tables import averages as summary
from analysis.tables import cells, costs, footnotes, rows, sorting
from analysis.tables import published as papers
from analysis.tables import sheet as sheets
from analysis.tables.averages import Averages, Ranks
from analysis.tables.formats import html, latex, long_csv, markdown
from analysis.tables.published import Paper

FORMATS = ("md", "markdown", "csv", "latex", "html")
_ENDINGS = {".csv": "csv", ".tex": "latex", ".html": "html"}


@dataclass(frozen=True)
class Options:
    """The options of a table besides its runs and its format."""

    group: str | None = None  # "budget", or None for one group
    memory: bool = False  # whether the parts of the memory get columns
    published: Sequence[str] = ()  # names of sets in published/
    metric: str | None = None  # a metric of the records; None for each task's own
    columns: Sequence[str] | None = None  # after the tasks, in order; None for the usual ones
    sort: str | None = None  # a task or a column; None for the order of names
    caption: str | None = None  # of LaTeX
    label: str = "tab:results"


PLAIN = Options()
_COLUMNS = (sheets.AVERAGE, sheets.RANK, *(cost.name for cost in costs.COSTS))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `table`."""
    add_runs(parser)
    parser.add_argument("--format", choices=FORMATS, help="default: the ending of the output's name, or else md")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")
    parser.add_argument("--caption", metavar="TEXT", help="caption of a LaTeX table; default: its tasks")
    parser.add_argument(
        "--label", default=PLAIN.label, metavar="NAME", help="label of a LaTeX table; default: %(default)s"
    )
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The arguments for the content of the table."""
    parser.add_argument(
        "--group",
        choices=["budget"],
        help="budget: group the rows by variant.budget and compare them within each group",
    )
    parser.add_argument(
        "--memory",
        action="store_true",
        help="also show the parts of the memory: weights, gradients, optimizer, activations",
    )
    parser.add_argument(
        "--published",
        action="append",
        choices=papers.names(),
        default=[],
        metavar="SET",
        help=f"also show numbers of a paper; may be repeated: {', '.join(papers.names())}",
    )

    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="a metric of the records instead of each task's own, for every task that has it",
    )
    parser.add_argument(
        "--columns",
        type=_names,
        metavar="NAME,…",
        help=f"the columns after the tasks, in this order; 'none', or of: {', '.join(_COLUMNS)}",
    )
    parser.add_argument(
        "--sort", metavar="NAME", help="sort rows by a task or a column, the best or the smallest first"
    )


def _names(text: str) -> tuple[str, ...]:
    names = () if text == "none" else tuple(name.strip() for name in text.split(","))
    for index, name in enumerate(names):
        if name not in _COLUMNS or name in names[:index]:
            twice = " twice" if name in _COLUMNS else ""
            raise argparse.ArgumentTypeError(f"{name!r}{twice}, allowed: none, or of {', '.join(_COLUMNS)}")
    return names


def options_of(arguments: argparse.Namespace) -> Options:
    """The options that `add_options` added."""
    return Options(
        arguments.group,
        arguments.memory,
        tuple(arguments.published),
        arguments.metric,
        arguments.columns,
        arguments.sort,
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints the table. Raises `AnalysisError` if there is no record."""
    output: Path | None = arguments.output
    form = arguments.format or _ENDINGS.get(output.suffix if output else "", "md")
    options = replace(options_of(arguments), caption=arguments.caption, label=arguments.label)
    text, problems = render(read_runs(arguments.runs), "md" if form == "markdown" else form, options)
    emit(text, output)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 0


def render(run_set: runs.RunSet, form: str, options: Options = PLAIN) -> tuple[str, list[str]]:
    """The table as text, and the problems if the format (csv) can't show them. Raises `AnalysisError`."""
    if options.memory and options.columns is not None:
        raise AnalysisError("--memory: with --columns, which names all columns; allowed: one of the two")
    if form == "csv" and options.columns is not None:
        raise AnalysisError("--columns: csv has all of them; allowed: md, latex, html")
    built = build(run_set, options, every_cost=form == "csv")
    table, averages, ranks, beside = built.grid, built.averages, built.ranks, built.published
    underlined = form in ("latex", "html")
    lines = built.footnotes(run_set, underlined=underlined)
    if form == "csv":
        return long_csv.render(table, averages, ranks, beside, by_group=options.sort is not None), [
            markdown.one_line(note.text) for note in lines if note.problem
        ]
    sheet = built.sheet()
    if form == "latex":
        tasks = ", ".join(column.task for column in table.columns)
        return latex.render(sheet, lines, options.caption or f"Results on {tasks}.", options.label), []
    return (html.render if form == "html" else markdown.render)(sheet, lines), []


@dataclass(frozen=True)
class Built:
    """A table before it is formatted."""

    rows: rows.Rows
    grid: cells.Grid
    averages: Averages
    ranks: Ranks
    published: list[Paper]
    columns: Sequence[str] | None

    def sheet(self) -> sheets.Sheet:
        """The table as entries."""
        return sheets.build(self.grid, self.averages, self.ranks, self.published, self.columns)

    def footnotes(self, run_set: runs.RunSet, *, underlined: bool) -> list[footnotes.Note]:
        """The lines below it; average and rank are explained if they are columns."""
        return footnotes.build(
            run_set,
            self.rows,
            self.grid,
            self.averages if self._has(sheets.AVERAGE) else None,
            self.ranks if self._has(sheets.RANK) else None,
            self.published,
            underlined=underlined,
        )

    def _has(self, name: str) -> bool:
        return self.columns is None or name in self.columns


def build(run_set: runs.RunSet, options: Options, *, every_cost: bool = False) -> Built:
    """The table with these options. Raises `AnalysisError` for an unknown metric or column."""
    if options.metric is not None:
        run_set.report(options.metric)
    all_rows = rows.build(run_set)
    by_name = {cost.name: cost for cost in costs.COSTS}
    grid = cells.build(
        all_rows,
        group_by_budget=options.group == "budget",
        memory=options.memory,
        chosen=None if options.columns is None else [by_name[name] for name in options.columns if name in by_name],
        every_cost=every_cost,
        glue=options.metric is None,
    )
    averages, ranks = summary.averages(grid), summary.ranks(grid)
    if options.sort is not None:
        grid = sorting.by(grid, averages, ranks, options.sort)
    return Built(all_rows, grid, averages, ranks, papers.beside(grid, options.published), options.columns)


VERB = Verb(
    name="table",
    summary="variant × task with mean ± sd over seeds, and costs",
    description=(
        "One row for each variant, or several with labels if its runs differ in more than their seed; one\n"
        "column for each task, then the average over tasks as GLUE forms it, the average rank, parameters,\n"
        "memory and time. Rows are sorted by variant, model and settings, and numbers in names by size.\n"
        "The memory is one column; --memory adds its parts.\n"
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
