"""The command line: finds the verb, shows errors in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from analysis.commands import collect, compare, dashboard, figures, readme, report, sync, table
from analysis.commands.command import Verb
from analysis.errors import AnalysisError

VERBS: tuple[Verb, ...] = (
    *(table.VERB, collect.VERB, compare.VERB, figures.VERB, report.VERB),
    *(readme.VERB, dashboard.VERB, sync.VERB),
)


def parser() -> argparse.ArgumentParser:
    """The parser of all verbs; `--help` lists them."""
    top = argparse.ArgumentParser(
        prog="python -m analysis",
        description="Tables, comparisons, figures and reports from run folders.",
        epilog="python -m analysis <verb> --help shows the options of a verb and an example.",
    )
    verbs = top.add_subparsers(title="verbs", metavar="<verb>", dest="verb", required=True)
    for verb in VERBS:
        sub = verbs.add_parser(
            verb.name,
            help=verb.summary,
            description=verb.description,
            epilog="example:\n" + "\n".join(f"  {line}" for line in verb.example.splitlines()),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add_arguments(sub)
        sub.set_defaults(run=verb.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0, 1 for a check that fails, or 2 for what can't be done."""
    options = parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except AnalysisError as error:
        print(f"analysis: {error}", file=sys.stderr)
        return 2
    return code
