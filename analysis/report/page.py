"""Writes the page: one self-contained file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.report import verdicts
from analysis.report.headline import Headline
from analysis.report.images import Kind
from analysis.report.origin import Maker
from analysis.report.verdicts import Verdicts
from analysis.tables.footnotes import Note
from analysis.tables.formats import html

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("data", "tables", "runs", "charts", "run", "routes")


@dataclass(frozen=True)
class Content:
    """The content of the page. why_no_pictures: empty if there are pictures."""

    title: str
    summary: str
    headline: Headline
    notes: Sequence[Note]
    verdicts: Verdicts
    kinds: Sequence[Kind]
    why_no_pictures: str
    data: Mapping[str, Any]  # for scripts, by name
    made_with: Sequence[tuple[str, str]]
    maker: Maker


def render(content: Content) -> str:
    """The page as HTML."""
    from markupsafe import Markup

    scripts = "\n".join(_part(f"{name}.js") for name in SCRIPTS)
    text = (
        html.environment(TEMPLATES)
        .get_template("report.html.jinja")
        .render(
            page=content,
            heads=verdicts.HEADS,
            problems=[note.text for note in content.notes if note.problem],
            explanations=[note.text for note in content.notes if not note.problem],
            data={name: Markup(embedded(entry)) for name, entry in content.data.items()},
            style=Markup(html.style() + _part("report.css")),
            script=Markup(scripts),
        )
    )
    # UTF-8 has no lone surrogates.
    return text.strip().encode("utf-8", "replace").decode("utf-8") + "\n"


def embedded(entry: Any) -> str:
    """JSON that is safe within `<script>`: it can't end the element or start a comment."""
    text = json.dumps(entry, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _part(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def problems(notes: Sequence[Note], unequal: Iterator[str]) -> list[Note]:
    """The notes, with unequal protocols after the explanations."""
    explanations = [note for note in notes if not note.problem]
    return [*explanations, *(Note(text, problem=True) for text in unequal), *(note for note in notes if note.problem)]
