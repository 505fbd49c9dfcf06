"""What a verb of the command line is, and the kinds of argument that verbs share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """One thing that `python -m variants` does."""

    name: str
    summary: str  # one line, for the list of verbs
    description: str  # what `--help` of the verb says above the arguments
    examples: Sequence[str]  # command lines, shown below them
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]  # may raise ConfigError


def rank(text: str) -> int:
    """A rank on the command line."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, allowed: a whole number ≥ 1")
    return int(text)


def ranks(text: str) -> list[int]:
    """Ranks with commas between them: each once, in rising order."""
    return sorted({rank(part) for part in text.split(",")})
