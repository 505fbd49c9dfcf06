"""Finds the verb, shows errors in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from analysis.commands.command import Verb
from analysis.errors import AnalysisError
from trainer.errors import ConfigError, RunFailed
from weights import export, predict, spectrum, truncate

VERBS: tuple[Verb, ...] = (export.VERB, predict.VERB, truncate.VERB, spectrum.VERB)


def parser() -> argparse.ArgumentParser:
    """The parser of all verbs; `--help` lists them."""
    top = argparse.ArgumentParser(
        prog="python -m weights",
        description="Exports a finished run, evaluates it on other data, truncates its update; decomposes a backbone.",
        epilog="python -m weights <verb> --help shows the options of a verb and examples.",
    )
    verbs = top.add_subparsers(title="verbs", metavar="<verb>", dest="verb", required=True)
    for verb in VERBS:
        sub = verbs.add_parser(
            verb.name,
            help=verb.summary,
            description=verb.description,
            epilog="examples:\n" + "\n".join(f"  {line}" for line in verb.example.splitlines()),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add_arguments(sub)
        sub.set_defaults(carry_out=verb.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Carries out one command; returns its exit code: 0, or 2 for something that can't be done."""
    options = parser().parse_args(arguments)
    try:
        code: int = options.carry_out(options)
    except (ConfigError, RunFailed, AnalysisError) as error:
        print(f"weights: {error}", file=sys.stderr)
        return 2
    return code
