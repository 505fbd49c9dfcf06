"""`python -m analysis keep`: copies of runs small enough to be committed: records and final ranks, without the rest."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from analysis.commands.command import Verb, add_runs, read_runs, write
from analysis.errors import AnalysisError
from analysis.records import run_files
from analysis.records.run_files import Unusable
from analysis.tables import footnotes
from trainer.record import FILENAME


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `keep`."""
    add_runs(parser)
    parser.add_argument("--output", type=Path, metavar="FOLDER", required=True, help="a folder for each run goes here")


def run(options: argparse.Namespace) -> int:
    """Writes the copies. Raises `AnalysisError` if a record can't be trusted, or another is there under its name."""
    runs = read_runs(options.runs)
    if runs.untrusted:
        raise AnalysisError(f"keep: {runs.untrusted[0]}")
    for each in runs.runs:
        target = options.output / each.record.run_id
        record = (each.folder / FILENAME).read_bytes()
        if (target / FILENAME).exists() and (target / FILENAME).read_bytes() != record:
            raise AnalysisError(f"keep: {target}: another record of this run is there; allowed: the same one, or none")
        write(target / FILENAME, record)
        try:
            last = run_files.ranks(each.folder)[-1]
        except Unusable:
            continue  # the method has no ranks, or the run failed
        line = json.dumps({"step": last.step, "ranks": last.ranks})
        write(target / "ranks.jsonl", f"{line}\n".encode())
    print(f"{len(runs.runs)} records in {options.output}")
    for text in footnotes.left_out(runs):
        print(text)
    return 0


VERB = Verb(
    name="keep",
    summary="copies of records and final ranks, small enough to be committed",
    description=(
        "Copies each run's record as it is, and the ranks that it ended with: what tables, verdicts, rates, agreement\n"
        "and most pictures are made from. Curves, predictions and adapters stay behind."
    ),
    example="python -m analysis keep runs/main --output runs/reference/main",
    add_arguments=add_arguments,
    run=run,
)
