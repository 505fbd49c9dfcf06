"""`python -m analysis readme`: regenerates what a text holds between two marks from committed records.

The first mark names a study in a folder of reference records, with options: `analysis.commands.blocks`.

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

from analysis.commands import blocks
from analysis.commands.blocks import KINDS, Kind, Made
from analysis.commands.command import Verb, emit
from analysis.errors import AnalysisError
from analysis.records import runs

REFERENCE = Path("runs/reference")
_NAMES = "|".join(KINDS)
_BEGIN = re.compile(rf"<!-- ({_NAMES}):(.*?) -->")
_END = re.compile(rf"<!-- /({_NAMES}) -->")


@dataclass(frozen=True)
class _Marked:
    """A marked block: lines `first` to `last`, without the marks and without `last`."""

    kind: Kind
    study: str
    options: argparse.Namespace
    first: int
    last: int


@dataclass(frozen=True)
class Regenerated:
    """A text with regenerated blocks, which are `made`."""

    text: str
    made: list[Made]


def regenerated(text: str, where: str, reference: Path) -> Regenerated:
    """Makes the blocks of `text` anew.

    where: the name of the text in errors. Raises `AnalysisError` for unmatched marks, a study without records, and
    records that can't be trusted.
    """
    lines = text.split("\n")
    made = [(each, _made(each, where, reference)) for each in _marked(lines, where)]
    # Backwards, because a block may change its length.
    for each, block in reversed(made):
        # Without blank lines, Markdown reads a table as part of the comment.
        lines[each.first : each.last] = ["", *block.text.rstrip("\n").split("\n"), ""]
    return Regenerated("\n".join(lines), [block for _, block in made])


def _marked(lines: Sequence[str], where: str) -> Iterator[_Marked]:
    begun: tuple[int, str, str] | None = None  # line, kind, study and options
    for number, line in enumerate(lines):
        here = f"{where}, line {number + 1}"
        start, end = _BEGIN.fullmatch(line.strip()), _END.fullmatch(line.strip())
        if start and begun:
            raise AnalysisError(f"{here}: a {start[1]} inside the {begun[1]} of line {begun[0] + 1}")
        if start:
            begun = (number, start[1], start[2])
        elif end:
            if begun is None or begun[1] != end[1]:
                raise AnalysisError(f"{here}: {end[0]} without a {end[1]} before it")
            study, options = _parsed(*begun[1:], f"{where}, line {begun[0] + 1}")
            yield _Marked(KINDS[begun[1]], study, options, begun[0] + 1, number)
            begun = None
        elif begin := re.match(rf"<!-- ({_NAMES}):", line.strip()):
            raise AnalysisError(f"{here}: {line.strip()!r}, allowed: <!-- {begin[1]}:STUDY --> alone on its line")
    if begun is not None:
        raise AnalysisError(f"{where}, line {begun[0] + 1}: no <!-- /{begun[1]} --> for this {begun[1]}")


def _parsed(kind: str, text: str, here: str) -> tuple[str, argparse.Namespace]:
    parser = blocks.Parser(here)
    parser.add_argument("study")
    KINDS[kind].add_options(parser)
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise AnalysisError(f"{here}: {error}") from None
    options = parser.parse_args(words)
    return options.study, options


def _made(marked: _Marked, where: str, reference: Path) -> Made:
    here = f"{where}, line {marked.first}"
    folder = reference / marked.study
    if not reference.is_dir() or not folder.is_dir() or ".." in folder.parts:
        studies = sorted(path.name for path in reference.iterdir() if path.is_dir()) if reference.is_dir() else []
        raise AnalysisError(
            f"{here}: no study {marked.study!r} in {reference}, allowed: {', '.join(studies) or 'none'}"
        )
    read = runs.read([folder])
    if read.untrusted or not read.done:
        reason = "; ".join(read.untrusted) or "no done run"
        raise AnalysisError(f"{here}: study {marked.study!r}: {reason}")
    try:
        return marked.kind.make(marked.study, read, marked.options)
    except AnalysisError as error:
        raise AnalysisError(f"{here}: {error}") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `readme`."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a text with marked blocks")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a block differs")
    parser.add_argument(
        "--reference",
        type=Path,
        default=REFERENCE,
        metavar="FOLDER",
        help=f"folder of the studies; default: {REFERENCE}",
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes or checks the blocks. Raises `AnalysisError`, see `regenerated`."""
    return max([_one(path, arguments.reference, arguments.check) for path in arguments.files])


def _one(path: Path, reference: Path, check: bool) -> int:
    try:
        old = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AnalysisError(f"can't read {path}: {getattr(error, 'strerror', None) or error}") from None
    new = regenerated(old, str(path), reference)
    stale = [name for made in new.made for name, content in made.files.items() if _differs(path.parent / name, content)]
    count = "1 block" if len(new.made) == 1 else f"{len(new.made)} blocks"
    same = new.text == old and not stale
    if check and not same:
        difference = difflib.unified_diff(
            old.splitlines(keepends=True), new.text.splitlines(keepends=True), str(path), f"{path}, regenerated", n=1
        )
        emit("".join([*difference, *(f"{name}: the picture differs\n" for name in stale)]), None)
        emit(f"{path}: it differs from {reference}; without --check it is regenerated\n", None)
        return 1
    if new.text != old:
        emit(new.text, path)
    for made in new.made:
        blocks.write(made, path)
    emit(f"{path}: {count}, {'as' if same else 'now as'} in {reference}\n", None)
    return 0


def _differs(path: Path, content: bytes) -> bool:
    return not path.is_file() or path.read_bytes() != content


VERB = Verb(
    name="readme",
    summary="regenerates tables, verdicts, rates and pictures of a text",
    description=(
        "Regenerates every block between <!-- table:STUDY --> and <!-- /table -->, each alone on its line, from\n"
        "the records in runs/reference/STUDY. Options of table may follow the study's name. compare:STUDY --all ROW,\n"
        "choose:STUDY and figures:STUDY --only NAME,… make verdicts over tasks, chosen rates, and pictures."
    ),
    example="python -m analysis readme README.md\npython -m analysis readme README.md docs/first_results.md --check",
    add_arguments=add_arguments,
    run=run,
)
