"""Formats a table as Markdown, padded so that it is readable in a terminal too."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from analysis.tables.footnotes import Note
from analysis.tables.sheet import Entry, Head, Section, Sheet

_WIDEST = 44  # a longer name overflows its column instead of widening every line


def render(sheet: Sheet, notes: Sequence[Note]) -> str:
    """The table, then one bullet for each note."""
    head = ["variant", *map(_head, sheet.heads)]
    body = [line for section in sheet.sections for line in _section(section, len(head))]
    bullets = [f"- {escape(note.text)}" for note in notes]
    return "\n".join([*table(head, body), "", *bullets]) + "\n"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table. Cells are escaped; the first column is left-aligned, the others right-aligned."""
    widths = [max(3, *(min(_WIDEST, _width(line[column])) for line in [head, *body])) for column in range(len(head))]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return [_line(line, widths) for line in (head, rule, *body)]


def _head(head: Head) -> str:
    text = " ".join(filter(None, [head.name, head.metric]))
    return escape(f"{text}, {head.reading}" if head.reading else text)


def _section(section: Section, width: int) -> Iterator[list[str]]:
    if section.title is not None:
        yield [f"**{escape(section.title)}**", *[""] * (width - 1)]
    for line in section.lines:
        label = escape(line.label)
        if section.published:
            yield [f"*{label}*", *(f"*{entry.text}*" if entry.text else "" for entry in line.entries)]
        else:
            yield [label, *map(_entry, line.entries)]


def _entry(entry: Entry) -> str:
    text = f"**{entry.text}**" if entry.mark == "best" else entry.text
    spread = f" ± {entry.sd}" if entry.sd else ""
    return f"{text}{spread} ({entry.n})" if entry.n else f"{text}{spread}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padding = [" " * max(0, width - _width(cell)) for cell, width in zip(cells, widths, strict=True)]
    first, *others = zip(cells, padding, strict=True)
    return "| " + " | ".join([first[0] + first[1], *(pad + cell for cell, pad in others)]) + " |"


def _width(text: str) -> int:
    """The width of a text in a terminal: two columns for wide letters, none for combining marks."""
    if max(text, default="") < "\u0300":  # the first combining mark; wide letters come later
        return len(text)
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)


# An underscore within a word is not markup; all others may be.
_MARKUP = re.compile(r"[\\`*|<>\[\]~&$]|(?<![^\W_])_|_(?![^\W_])")


def escape(text: str) -> str:
    """`text` escaped for Markdown, on one line."""
    return _MARKUP.sub(r"\\\g<0>", one_line(text))


def one_line(text: str) -> str:
    """`text` with line breaks and other control characters replaced by spaces."""
    if text.isprintable():
        return text
    return "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)
