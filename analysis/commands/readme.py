"""`python -m analysis readme`: regenerates the tables of a text from committed records.

A table is between two lines. The first names a study in a folder of reference records, with options of `table`:

    <!-- table:families --group budget -->
    …
    <!-- /table -->
"""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from analysis.commands import table
from analysis.commands.command import Verb, emit
from analysis.errors import AnalysisError
from analysis.records import runs

REFERENCE = Path("runs/reference")
_BEGIN = re.compile(r"<!-- table:(.*?) -->")
_END = "<!-- /table -->"


@dataclass(frozen=True)
class _Marked:
    """A marked table: lines `first` to `last`, without the markers and without `last`."""

    study: str
    options: table.Options
    first: int
    last: int


def regenerated(text: str, where: str, reference: Path) -> tuple[str, int]:
    """`text` with regenerated tables, and their number.

    where: the name of the text in errors. Raises `AnalysisError` for unmatched markers, a study without records, and
    records that can't be trusted.
    """
    lines = text.split("\n")
    made = [(each, _table(each, where, reference)) for each in _marked(lines, where)]
    # Backwards, because a table may change its length.
    for each, table_text in reversed(made):
        # Without blank lines, Markdown reads the table as part of the comment.
        lines[each.first : each.last] = ["", *table_text.rstrip("\n").split("\n"), ""]
    return "\n".join(lines), len(made)


def _marked(lines: Sequence[str], where: str) -> Iterator[_Marked]:
    begun: tuple[int, str] | None = None
    for number, line in enumerate(lines):
        here = f"{where}, line {number + 1}"
        start = _BEGIN.fullmatch(line.strip())
        if start and begun:
            raise AnalysisError(f"{here}: a table inside the one of line {begun[0] + 1}")
        if start:
            begun = (number, start[1])
        elif line.strip() == _END:
            if begun is None:
                raise AnalysisError(f"{here}: {_END} without a table before it")
            study, options = _parsed(begun[1], f"{where}, line {begun[0] + 1}")
            yield _Marked(study, options, begun[0] + 1, number)
            begun = None
        elif line.strip().startswith("<!-- table:"):
            raise AnalysisError(f"{here}: {line.strip()!r}, allowed: <!-- table:STUDY --> alone on its line")
    if begun is not None:
        raise AnalysisError(f"{where}, line {begun[0] + 1}: no {_END} for this table")


def _parsed(text: str, here: str) -> tuple[str, table.Options]:
    parser = _Parser(here)
    parser.add_argument("study")
    table.add_options(parser)
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise AnalysisError(f"{here}: {error}") from None
    options = parser.parse_args(words)
    return options.study, table.options_of(options)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are `AnalysisError` and name the line."""

    def __init__(self, here: str) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        self._here = here

    def error(self, message: str) -> NoReturn:
        raise AnalysisError(f"{self._here}: {message}")


def _table(marked: _Marked, where: str, reference: Path) -> str:
    here = f"{where}, line {marked.first}"
    studies = sorted(path.name for path in reference.iterdir() if path.is_dir()) if reference.is_dir() else []
    if marked.study not in studies:
        raise AnalysisError(
            f"{here}: no study {marked.study!r} in {reference}, allowed: {', '.join(studies) or 'none'}"
        )
    read = runs.read([reference / marked.study])
    if read.untrusted or not read.done:
        reason = "; ".join(read.untrusted) or "no done run"
        raise AnalysisError(f"{here}: study {marked.study!r}: {reason}")
    text, _ = table.render(read, "md", marked.options)
    return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `readme`."""
    parser.add_argument("file", type=Path, help="a text with marked tables")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a table differs")
    parser.add_argument(
        "--reference",
        type=Path,
        default=REFERENCE,
        metavar="FOLDER",
        help=f"folder of the studies; default: {REFERENCE}",
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes or checks the tables. Raises `AnalysisError`, see `regenerated`."""
    path: Path = arguments.file
    try:
        old = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AnalysisError(f"can't read {path}: {getattr(error, 'strerror', None) or error}") from None
    new, count = regenerated(old, str(path), arguments.reference)
    tables = "1 table" if count == 1 else f"{count} tables"
    if arguments.check and new != old:
        difference = difflib.unified_diff(
            old.splitlines(keepends=True), new.splitlines(keepends=True), str(path), f"{path}, regenerated", n=1
        )
        emit("".join(difference), None)
        emit(f"{path}: its tables differ from {arguments.reference}; without --check they are regenerated\n", None)
        return 1
    if new != old:
        emit(new, path)
    emit(f"{path}: {tables}, {'as' if new == old else 'now as'} in {arguments.reference}\n", None)
    return 0


VERB = Verb(
    name="readme",
    summary="regenerates the tables of a text",
    description=(
        "Regenerates every table between <!-- table:STUDY --> and <!-- /table -->, each alone on its line, from\n"
        "the records in runs/reference/STUDY. Options of table may follow the study's name."
    ),
    example="python -m analysis readme README.md\npython -m analysis readme README.md --check",
    add_arguments=add_arguments,
    run=run,
)
