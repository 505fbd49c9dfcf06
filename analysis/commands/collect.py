"""`python -m analysis collect`: one tidy frame with one row for each run.

The columns are the fields of a record: identity, results, provenance, settings. `frame` returns the same in Python.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.commands.command import Verb, add_runs, emit_parts, read_runs
from analysis.errors import AnalysisError
from analysis.records import provenance
from analysis.records.columns import Columns
from analysis.records.runs import RunSet
from analysis.tables import footnotes
from analysis.tables.formats.markdown import one_line
from trainer.record import STATUSES

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("csv", "parquet")


def frame(roots: Iterable[Path | str]) -> pd.DataFrame:
    """One row for each run below `roots`, done or failed. Numbers that were not measured are missing.

    `frame.attrs["problems"]` lists what was skipped and what is mixed. Raises `AnalysisError` if there is no run.
    """
    runs = read_runs(roots)
    table: pd.DataFrame = Columns(runs).table().to_pandas()
    table.attrs["problems"] = _problems(runs)
    return table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `collect`."""
    add_runs(parser)
    parser.add_argument("--format", choices=FORMATS, help="default: the ending of the output's name, or else csv")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")


def run(arguments: argparse.Namespace) -> int:
    """Writes the frame. Raises `AnalysisError` if there is no record."""
    output: Path | None = arguments.output
    form = arguments.format or ("parquet" if output and output.suffix == ".parquet" else "csv")
    if form == "parquet" and output is None:
        raise AnalysisError("--format: 'parquet' needs --output")
    runs = read_runs(arguments.runs)
    columns = Columns(runs)
    if output is not None and form == "parquet":
        columns.write_parquet(output)
    else:
        emit_parts(columns.csv(), output)
    for problem in _problems(runs):
        print(problem, file=sys.stderr)
    return 0


def _problems(runs: RunSet) -> list[str]:
    """What is mixed among the rows, and what was skipped."""
    made_with = runs.provenance(*STATUSES)
    code, wrong = made_with.code()
    unequal = provenance.unequal(runs.having("done"))
    problems = [*([code] if wrong else []), *made_with.mixed(), *unequal, *footnotes.left_out(runs)]
    return [one_line(problem) for problem in problems]


VERB = Verb(
    name="collect",
    summary="one row for each run, as csv or parquet",
    description=(
        "One row for each run, one column for each field of the record; failed runs have their error.\n"
        "Rows are sorted by variant, model, task, settings and seed. In csv, lists are JSON, booleans are\n"
        "true and false, and missing numbers are empty. Folders that are corrupt, foreign or duplicate are\n"
        "skipped and listed on standard error, as are mixed code, libraries, machines and protocols."
    ),
    example=(
        "python -m analysis collect runs/demo --output demo.csv\n"
        "python -m analysis collect runs/demo runs/more --output demo.parquet"
    ),
    add_arguments=add_arguments,
    run=run,
)
