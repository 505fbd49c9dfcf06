"""`python -m analysis figures`: all pictures that the runs allow, as PNG and SVG, with captions."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.commands.command import Verb, add_runs, chosen, read_runs, write
from analysis.errors import AnalysisError
from analysis.plots.catalogue import NAMES, pictures
from analysis.records import runs
from analysis.tables import footnotes
from analysis.tables.formats.markdown import escape, one_line

if TYPE_CHECKING:
    from analysis.plots.kind import Kind, LeftOut, Picture, Study

FORMATS = ("png", "svg")
CAPTIONS = "captions.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `figures`."""
    add_runs(parser)
    parser.add_argument("--output", type=Path, metavar="DIR", required=True, help="folder for the files")
    parser.add_argument("--only", metavar="NAME,…", help=f"kinds of figures: {', '.join(NAMES)}; default: all")
    parser.add_argument("--format", default=",".join(FORMATS), metavar="FORMAT,…", help="png, svg; default: both")
    parser.add_argument(
        "--pair",
        nargs=2,
        metavar="RUN",
        help="two runs, by folder or run_id, for subspace-similarity; default: the first two seeds of every row",
    )


def run(options: argparse.Namespace) -> int:
    """Draws and writes the figures. Raises `AnalysisError` if none can be drawn or a file can't be written."""
    only = chosen("--only", options.only, NAMES)
    formats = chosen("--format", options.format, FORMATS)
    run_set = read_runs(options.runs)
    if not run_set.done:
        raise AnalysisError(f"no finished run to draw; {len(run_set.failed)} failed")
    pair = None if options.pair is None else (_pick(options.pair[0], run_set), _pick(options.pair[1], run_set))
    from analysis.plots.kind import Picture, Study
    from analysis.plots.left_out import lines
    from analysis.plots.style import encode

    study = Study(run_set, pair)
    output: Path = options.output
    drawn: list[tuple[Kind, Picture]] = []
    left_out: list[tuple[Kind, LeftOut]] = []
    for kind, item in pictures(study, only):
        if not isinstance(item, Picture):
            left_out.append((kind, item))
            continue
        figure = item.draw()
        for form in formats:
            write(output / f"{item.name}.{form}", encode(figure, form))
        print(output / item.name, *(f".{form}" for form in formats))
        drawn.append((kind, item))
    reasons = [one_line(line) for line in lines(study, left_out)]
    for line in reasons:
        print(f"Not drawn: {line}")
    if not drawn:
        raise AnalysisError("none of these figures can be drawn from the given runs")
    write(output / CAPTIONS, _captions(study, drawn, reasons, formats).encode())
    return 0


def _captions(study: Study, drawn: Iterable[tuple[Kind, Picture]], reasons: Iterable[str], formats: list[str]) -> str:
    """The captions, the reasons for missing pictures, and the notes on the runs."""
    lines = ["# Figures", ""]
    for _, picture in drawn:
        files = ", ".join(f"[{form}]({picture.name}.{form})" for form in formats)
        lines += [f"## {escape(picture.name)}", "", f"{escape(picture.caption)} ({files})", ""]
    reasons = list(reasons)
    if reasons:
        lines += ["## Not drawn", "", *(f"- {escape(reason)}" for reason in reasons), ""]
    # The other notes explain a table.
    notes = footnotes.build(study.runs, study.rows, study.grid)
    about = [note for note in notes if note.problem or note.text.startswith("Code: ")]
    return "\n".join([*lines, "## The runs", "", *(f"- {escape(note.text)}" for note in about), ""])


def _pick(text: str, run_set: runs.RunSet) -> runs.Run:
    """The finished run with this run_id, or in this folder."""
    for run in run_set.done:
        if run.record.run_id == text:
            return run
    read = runs.read([Path(text)])
    if len(read.done) != 1:
        raise AnalysisError(f"--pair: {text!r}, allowed: a folder with one finished run, or a run_id among the runs")
    return read.done[0]


VERB = Verb(
    name="figures",
    summary="pictures as PNG and SVG, with captions",
    description=(
        "Draws every kind of figure that the runs allow, with rows and tasks as in `table`. captions.md has the\n"
        "captions (error bars, numbers of seeds) and lists what can't be drawn, with the reason.\n"
        "The same runs give the same bytes."
    ),
    example=(
        "python -m analysis figures runs/demo --output figures\n"
        "python -m analysis figures runs/demo --output figures --only rank-map,memory --format svg"
    ),
    add_arguments=add_arguments,
    run=run,
)
