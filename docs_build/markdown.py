"""Tables of Markdown, and the comments that a file has behind its fields."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; `|` and line ends within a cell would break it, and `<` begin a tag."""
    cells = [[_cell(cell) for cell in row] for row in rows]
    lines = [list(columns), ["---"] * len(columns), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(text: str) -> str:
    parts = re.split(r"(`[^`]*`)", re.sub(r"\s+", " ", text).strip().replace("|", "\\|"))
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


def code(text: str) -> str:
    """Text as code within a line; empty for no text."""
    return f"`{text}`" if text else ""


def comments(source: str) -> dict[int, str]:
    """The comments of Python code by the number of their line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}


def described(docstring: str) -> dict[str, str]:
    """What a docstring says of fields: {"rank": "of every layer"} for "rank: of every layer. alpha, beta: …"."""
    text = " ".join(docstring.split())
    parts = re.split(r"(?:^|(?<=[.;)`]) )((?:[a-z_]\w*)(?:, [a-z_]\w*)*): ", text)
    found: dict[str, str] = {}
    for names, meaning in zip(parts[1::2], parts[2::2], strict=True):
        found |= dict.fromkeys(names.split(", "), meaning.strip())
    return found
