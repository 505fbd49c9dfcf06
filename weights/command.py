"""Arguments that verbs share."""

from __future__ import annotations

import argparse


def add_run(parser: argparse.ArgumentParser) -> None:
    """Adds the argument for a finished run."""
    parser.add_argument("run", help="folder of a finished run: runs/<study>/<run_id>")


def count(text: str) -> int:
    """A rank or another number of things on the command line."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, allowed: a whole number ≥ 1")
    return int(text)


def ranks(text: str) -> list[int]:
    """Ranks separated by commas, without repetitions, rising."""
    return sorted({count(part) for part in text.split(",")})
