"""Defines a verb of the command line, and arguments and functions that verbs share."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from analysis.errors import AnalysisError
from analysis.records import runs
from analysis.records.runs import RunSet
from trainer.record import FILENAME

ERRORS = "backslashreplace"  # names of folders may not be UTF-8


@dataclass(frozen=True)
class Verb:
    """One verb of `python -m analysis` or `python -m weights`."""

    name: str
    summary: str  # one line, for the list of verbs
    description: str  # shown above the arguments by `--help`
    example: str  # one or more command lines, shown below the arguments
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]  # returns the exit code; may raise AnalysisError


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Adds the argument for run folders."""
    parser.add_argument(
        "runs", nargs="+", type=Path, help="run folders, or folders with run folders at any depth below"
    )


def read_runs(roots: Iterable[Path | str]) -> RunSet:
    """All runs below `roots`. Raises `AnalysisError` with the reason if there are none."""
    read = runs.read(roots)
    if read.runs:
        return read
    for reason in read.untrusted:
        print(f"Not used, can't be trusted: {reason}", file=sys.stderr)
    for folder in read.begun:
        print(f"Not ended, or killed: {folder}: no {FILENAME}", file=sys.stderr)
    if read.untrusted:
        raise AnalysisError(f"no record that can be trusted; {len(read.untrusted)} that can't")
    raise AnalysisError("no records: " + "; ".join(read.empty))


def emit(text: str, output: Path | None) -> None:
    """Writes `text` to a file, or to standard output for None, as UTF-8 with `\\n`.

    Raises `AnalysisError` if the file can't be written.
    """
    emit_parts([text], output)


def emit_parts(parts: Iterable[str], output: Path | None) -> None:
    """Writes parts one after the other; see `emit`."""
    if output is not None:
        try:
            with open(output, "w", encoding="utf-8", errors=ERRORS, newline="\n") as file:
                file.writelines(parts)
        except OSError as error:
            raise AnalysisError(f"can't write {output}: {error.strerror or error}") from None
        return
    # A terminal with another encoding must not fail at ±.
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(encoding="utf-8", errors=ERRORS, newline="\n")
    try:
        sys.stdout.writelines(parts)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) has closed the pipe. The interpreter flushes again at exit, which must not fail.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def chosen(option: str, text: str | None, allowed: tuple[str, ...]) -> list[str]:
    """The names in a list with commas, or all allowed ones for None. Raises `AnalysisError`."""
    names = list(allowed) if text is None else [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in allowed:
            raise AnalysisError(f"{option}: {name!r}, allowed: {', '.join(allowed)}")
    if not names:
        raise AnalysisError(f"{option}: {text!r}, allowed: one or more of {', '.join(allowed)}")
    return list(dict.fromkeys(names))


def write(path: Path, content: bytes) -> None:
    """Writes a file and creates its folder. Raises `AnalysisError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise AnalysisError(f"can't write {path}: {error.strerror or error}") from None
