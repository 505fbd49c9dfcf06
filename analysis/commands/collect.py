"""`python -m analysis collect`: run folders → one tidy frame, one row a run.

The columns are the names of a record: first what the run is, then what came out of it, what it was
made with, and its settings. `frame` gives the same to Python.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.commands.command import Verb, add_runs, emit_parts, read_runs
from analysis.errors import AnalysisError
from analysis.records.columns import Columns
from analysis.records.runs import RunSet
from analysis.tables import footnotes
from analysis.tables.formats.markdown import one_line
from trainer.record import STATUSES

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("csv", "parquet")


def frame(roots: Iterable[Path | str]) -> pd.DataFrame:
    """One row for each run below `roots`, done or failed; what was not measured is missing.

    `frame.attrs["problems"]` lists what was left out and what is mixed. Raises `AnalysisError`
    where there is no run.
    """
    runs = read_runs(roots)
    found: pd.DataFrame = Columns(runs).table().to_pandas()
    found.attrs["problems"] = _problems(runs)
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `collect`."""
    add_runs(parser)
    parser.add_argument("--format", choices=FORMATS, help="default: what the name of the output ends in, else csv")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")


def run(arguments: argparse.Namespace) -> int:
    """Writes the frame. Raises `AnalysisError` where there is no record to make it from."""
    output: Path | None = arguments.output
    form = arguments.format or ("parquet" if output and output.suffix == ".parquet" else "csv")
    if form == "parquet" and output is None:
        raise AnalysisError("--format: 'parquet' needs --output")
    found = read_runs(arguments.runs)
    columns = Columns(found)
    if output is not None and form == "parquet":
        columns.write_parquet(output)
    else:
        emit_parts(columns.csv(), output)
    for problem in _problems(found):
        print(problem, file=sys.stderr)
    return 0


def _problems(found: RunSet) -> list[str]:
    """What is mixed among the rows, and what is not among them."""
    provenance = found.provenance(*STATUSES)
    code, wrong = provenance.code()
    problems = [*([code] if wrong else []), *provenance.mixed(), *provenance.unequal(), *footnotes.left_out(found)]
    return [one_line(problem) for problem in problems]


VERB = Verb(
    name="collect",
    summary="one row for each run, as csv or parquet",
    description=(
        "One row for each run, failed ones with their error, one column for each name of the record.\n"
        "Rows are sorted by variant, model, task, settings and seed. In csv lists are JSON, true and false\n"
        "are written so, and what was not measured is empty. Corrupt, foreign and duplicate folders are left\n"
        "out and listed on standard error; so are mixed code, libraries, machines and protocols."
    ),
    example=(
        "python -m analysis collect runs/demo --output demo.csv\n"
        "python -m analysis collect runs/demo runs/more --output demo.parquet"
    ),
    add_arguments=add_arguments,
    run=run,
)
