"""Finds the verb, shows errors in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from variants.command import export, truncate
from variants.command.verb import Verb

VERBS: tuple[Verb, ...] = (export.VERB, truncate.VERB)


def parser() -> argparse.ArgumentParser:
    """The parser of all verbs; `--help` lists them."""
    top = argparse.ArgumentParser(
        prog="python -m variants",
        description="Hands a finished run over to others, or cuts its update to lower ranks.",
        epilog="python -m variants <verb> --help shows the options of a verb and examples.",
    )
    verbs = top.add_subparsers(title="verbs", metavar="<verb>", dest="verb", required=True)
    for verb in VERBS:
        sub = verbs.add_parser(
            verb.name,
            help=verb.summary,
            description=verb.description,
            epilog="examples:\n" + "\n".join(f"  {line}" for line in verb.examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("run", help="folder of a finished run: runs/<study>/<run_id>")
        verb.add_arguments(sub)
        sub.set_defaults(carry_out=verb.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Carries out one command; returns its exit code: 0, or 2 for something that can't be done."""
    options = parser().parse_args(arguments)
    from trainer.errors import ConfigError

    try:
        options.carry_out(options)
    except ConfigError as error:
        print(f"variants: {error}", file=sys.stderr)
        return 2
    return 0
