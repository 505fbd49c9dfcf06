"""`python -m analysis compare`: which of two rows is better, by how much, and how certain that is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.commands.command import Verb, emit, read_runs
from analysis.comparison import sides
from analysis.comparison.sides import Sides
from analysis.errors import AnalysisError
from analysis.tables import rows
from analysis.tables.formats import markdown
from analysis.tables.rows import Row

FORMATS = ("md", "csv", "json")
_ENDINGS = {".csv": "csv", ".json": "json"}
_RESAMPLES = 2000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `compare`."""
    forms = ("A B runs [runs ...]", "--all BASELINE runs [runs ...]", "--pair A B [--pair A B ...] runs [runs ...]")
    parser.usage = "\n       ".join(f"%(prog)s [options] {form}" for form in forms)
    parser.add_argument(
        "words",
        nargs="+",
        metavar="A B runs",
        help="two rows of the table, by variant (lora) or label ('lora rank=4'), "
        "then run folders, or folders with run folders at any depth below",
    )
    add_choice(parser, required=False)
    parser.add_argument(
        "--resamples",
        type=_resamples,
        default=_RESAMPLES,
        metavar="N",
        help="resamples of the bootstrap over test examples; default: %(default)s",
    )
    parser.add_argument("--figure", type=Path, metavar="FILE", help="critical-difference diagram, .png or .svg")
    parser.add_argument("--format", choices=FORMATS, help="default: the ending of the output's name, or else md")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")


def add_choice(parser: argparse.ArgumentParser, required: bool) -> None:
    """The arguments that say which rows are compared: all with one, or named pairs."""
    which = parser.add_mutually_exclusive_group(required=required)
    which.add_argument("--all", metavar="BASELINE", help="compare every other row with this one, instead of A with B")
    which.add_argument(
        "--pair",
        nargs=2,
        action="append",
        metavar=("A", "B"),
        help="compare these two rows; given again, further pairs, as a method and each of its controls",
    )


def chosen(rows: Sequence[Row], options: argparse.Namespace) -> Sides:
    """The pairs that `add_choice`'s arguments ask for. Raises `AnalysisError`."""
    return sides.against(rows, options.all) if options.all is not None else sides.named(rows, options.pair)


def _resamples(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 100 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r}, allowed: a whole number from 100 to 1000000")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Prints the comparison. Raises `AnalysisError` if a row is not found or a figure can't be drawn."""
    folders = options.words
    if options.all is None and options.pair is None:
        options.pair, folders = [options.words[:2]], options.words[2:]
    if not folders:
        raise AnalysisError(
            "compare: no run folders; expected: A B runs …, --all BASELINE runs …, or --pair A B runs …"
        )
    runs = read_runs(map(Path, folders))
    all_rows = rows.build(runs)
    compared = chosen(all_rows.rows, options)

    # Imported here, because these import scipy, which a misspelt name and --help don't need.
    from analysis.comparison import figure, flags, outcome, overall, pooled, text, tidy, verdict

    ranks = overall.build(compared.rows, all_rows.tasks)
    if options.figure is not None:
        figure.check(options.figure)
        if ranks.untested:
            raise AnalysisError(f"--figure: {ranks.untested}")
    outcomes = outcome.compute(compared, all_rows.tasks, options.resamples)
    verdicts = [verdict.judge(one, outcomes.t_tests) for one in outcomes.done]
    together = pooled.build(compared, outcomes)
    lines = flags.build(runs, all_rows, compared, outcomes, options.resamples)
    output: Path | None = options.output
    form = options.format or _ENDINGS.get(output.suffix if output else "", "md")
    if form == "md":
        emit(text.render(compared, outcomes, verdicts, together, ranks, lines), output)
    elif form == "json":
        emit(tidy.render_json(outcomes, verdicts, together, ranks, lines), output)
    else:
        emit(tidy.render_csv(outcomes, verdicts), output)
        for line in lines:
            if line.problem:
                print(markdown.one_line(line.text), file=sys.stderr)
    if options.figure is not None:
        figure.draw(ranks, options.figure)
    return 0


VERB = Verb(
    name="compare",
    summary="which of two rows is better, and by how much",
    description=(
        "Compares two rows of the table, every row with a baseline, or named pairs of rows, on every task that\n"
        "both have.\n"
        "Over seeds: paired by seed, paired-t interval, exact sign-flip test, effect size.\n"
        "Over test examples, from the saved predictions: paired bootstrap; for accuracy McNemar's test.\n"
        "Over tasks: differences paired by task and seed, in points; average ranks, with 5 tasks and 3 rows\n"
        "Friedman's and Nemenyi's tests.\n"
        "p values have Holm's correction for all tests of their kind in this command. What weakens a comparison\n"
        "(unpaired seeds, unequal budgets, different code or protocols) is listed below it (csv: on standard\n"
        "error)."
    ),
    example=(
        "python -m analysis compare lora head runs/demo\n"
        "python -m analysis compare 'lora rank=4' 'lora rank=8' runs/ranks --format csv --output ranks.csv\n"
        "python -m analysis compare --all lora runs/families --figure ranks.svg\n"
        "python -m analysis compare --pair adalora adalora-ranks-in-lora --pair adalora adalora-random runs/controls"
    ),
    add_arguments=add_arguments,
    run=run,
)
