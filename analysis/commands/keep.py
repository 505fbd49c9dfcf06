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
    """Writes the copies. Raises `AnalysisError` if a record can't be trusted, or a file with other content is there.

    Nothing is written then. So the ranks of all steps, in a run's own folder, are never replaced by the final ones.
    """
    runs = read_runs(options.runs)
    if runs.untrusted:
        raise AnalysisError(f"keep: {runs.untrusted[0]}")
    copies: dict[Path, bytes] = {}
    without: list[str] = []
    for each in runs.runs:
        target = options.output / each.record.run_id
        copies[target / FILENAME] = (each.folder / FILENAME).read_bytes()
        try:
            last = run_files.ranks(each.folder)[-1]
        except Unusable as error:
            if each.record.rank.end is not None:  # else the method has no ranks, or the run failed
                without.append(f"Without its ranks: {each.folder}: {error}")
            continue
        line = json.dumps({"step": last.step, "ranks": last.ranks})
        copies[target / "ranks.jsonl"] = f"{line}\n".encode()
    for path, content in copies.items():
        if path.exists() and path.read_bytes() != content:
            raise AnalysisError(f"keep: {path}: another {path.name} is there; allowed: the same one, or none")
    for path, content in copies.items():
        write(path, content)
    print(f"{len(runs.runs)} records in {options.output}")
    for text in (*without, *footnotes.left_out(runs)):
        print(text)
    return 0


VERB = Verb(
    name="keep",
    summary="copies of records and final ranks, small enough to be committed",
    description=(
        "Copies each run's record as it is, and the ranks that it ended with: what tables, verdicts over seeds,\n"
        "rates, agreement and pictures of scores, costs and final ranks are made from. Curves, ranks in training,\n"
        "predictions and adapters stay behind."
    ),
    example="python -m analysis keep runs/main --output runs/reference/main",
    add_arguments=add_arguments,
    run=run,
)
