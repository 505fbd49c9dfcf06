"""A table as HTML: one page without scripts that needs nothing from elsewhere."""

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
    """The `<table>` alone, for a page that brings `style`."""
    return str(_module().table(sheet))


def style() -> str:
    """CSS of `table`."""
    return str(_module().style())


@functools.cache
def _module() -> Any:
    return environment(HERE).get_template("table.html.jinja").module


@functools.cache
def environment(folder: Path) -> Environment:
    """The templates of a folder. Whatever a template shows is escaped, and on one line."""
    # Only pages need the library; other formats come up without it.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: one_line(value) if type(value) is str else value,  # what is marked up stays
    )
