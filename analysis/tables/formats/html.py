"""Formats a table as HTML: one self-contained page without scripts."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.tables.footnotes import Note
from analysis.tables.formats.markdown import one_line
from analysis.tables.sheet import Sheet

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent


def render(sheet: Sheet, notes: Sequence[Note], title: str = "Results") -> str:
    """The page: the table, then one item for each note."""
    return str(_module().page(sheet, notes, title)).strip() + "\n"


def table(sheet: Sheet) -> str:
    """The `<table>` alone, for a page that includes `style`."""
    return str(_module().table(sheet))


def style() -> str:
    """The CSS of `table`."""
    return str(_module().style())


@functools.cache
def _module() -> Any:
    return environment(HERE).get_template("table.html.jinja").module


@functools.cache
def environment(folder: Path) -> Environment:
    """The templates of a folder. Everything that they show is escaped and on one line."""
    # Imported here, because other formats don't need it.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: one_line(value) if type(value) is str else value,  # Markup keeps its line breaks
    )
