"""`python -m analysis agree`: whether the ranks that a method finds agree between seeds and between tasks."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from analysis.commands.command import Verb, add_runs, emit, read_runs
from analysis.errors import AnalysisError

FORMATS = ("md", "json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `agree`."""
    add_runs(parser)
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="default: %(default)s")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")


def run(options: argparse.Namespace) -> int:
    """Prints the agreement. Raises `AnalysisError` if no row has two runs that found ranks."""
    from analysis.comparison import allocations  # imports numpy, which --help doesn't need

    found = allocations.build(read_runs(options.runs))
    if not found.lines:
        raise AnalysisError(f"agree: no row whose runs found ranks of their own: {'; '.join(found.left_out)}")
    if options.format == "json":
        lines = [{**asdict(line), "beyond": line.found.beyond} for line in found.lines]
        whole = {"lines": lines, "left_out": found.left_out, "problems": found.problems}
        emit(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", options.output)
    else:
        emit("\n".join(allocations.table(found)) + "\n", options.output)
    return 0


VERB = Verb(
    name="agree",
    summary="whether allocations of ranks agree between seeds and tasks",
    description=(
        "How much of their final ranks two runs of a row have in common, layer by layer: between the seeds of a\n"
        "task, and between tasks; beside what chance gives, and a permutation test."
    ),
    example="python -m analysis agree runs/families",
    add_arguments=add_arguments,
    run=run,
)
