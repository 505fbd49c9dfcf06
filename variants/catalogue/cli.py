"""The command line of `python -m variants list`, `show NAME` and `docs`."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from variants.catalogue.cards import methods, own_card
from variants.catalogue.tables import PAGE, page, text

VERBS = ("list", "show", "docs")


def parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    top = argparse.ArgumentParser("variants", description="The catalogue of methods.")
    verbs = top.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="every method in one line: paper, what trains, what changes and when")
    show = verbs.add_parser("show", help="a method's card: equations, sources, cost, what is known")
    show.add_argument("name", help="as after variant=")
    verbs.add_parser("docs", help="writes docs/variants.md from the cards")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, or 2 for an error, which is one line."""
    arguments = parser().parse_args(argv)
    try:
        found = methods()
        if arguments.verb == "list":
            _say(text(found))
        elif arguments.verb == "docs":
            if not PAGE.parent.is_dir():
                raise ValueError(f"docs: no folder {PAGE.parent}, allowed: in a checkout")
            PAGE.write_text(page(found))
        else:
            cards = {method.name: "\n\n".join(filter(None, (method.comment, method.card))) for method in found}
            if (card := cards.get(arguments.name) or own_card(arguments.name)) is None:
                raise ValueError(f"name: {arguments.name!r}, allowed: {', '.join(sorted(cards))}")
            _say(card)
    except ValueError as error:
        print(f"variants: {error}", file=sys.stderr)
        return 2
    return 0


def _say(said: str) -> None:
    """Prints symbols of formulas on any terminal, and to a reader that closes the pipe early (`| head`)."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    try:
        print(said, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes again at its end
