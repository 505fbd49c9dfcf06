"""Hooks of MkDocs: they add the pages that are made from the code, and mend links that lead out of `docs/`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # for `mkdocs` as a command, which has its own folder there

from docs_build import commands, gallery, links, notebooks, records, settings  # noqa: E402

# Pages that stand beside what they describe, and their place in the site.
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "variants/README.md": "own_methods.md",
    "runs/README.md": "runs.md",
    "benchmarks/README.md": "benchmarks.md",
    "conf/paper/README.md": "papers.md",
}


MADE: dict[str, Callable[[], str]] = {
    "reference/settings.md": settings.page,
    "reference/record.md": records.page,
    "reference/commands.md": commands.page,
    "tutorials/adalora_ranks.md": partial(notebooks.page, "adalora_ranks"),
    "tutorials/forty_lines.md": partial(notebooks.page, "own_method"),
}


def made_places() -> list[str]:
    """Where the pages that are made from the code are in the site."""
    return [*MADE, *gallery.places()]


def generated() -> dict[str, str]:
    """The texts of the pages that are made from the code, by their place in the site."""
    return {place: page() for place, page in MADE.items()} | gallery.pages()


def on_files(files: Files, /, *, config: MkDocsConfig, **_: Any) -> Files:
    """Adds the generated pages, those of `ELSEWHERE`, and one for each other file that a page links to."""
    written = {file.src_uri: file.content_string for file in files.documentation_pages()}
    made = generated()
    elsewhere = {ROOT / source: place for source, place in ELSEWHERE.items()}
    texts = links.site(written, elsewhere, gallery.anchors(), made)
    for place, text in {**texts, **made}.items():
        if (old := files.get_file_from_path(place)) is not None:
            files.remove(old)
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, /, *, page: Page, **_: Any) -> str:
    """Files that are only shown, not documented, have no place in a search."""
    if page.file.src_uri.startswith(links.SHOWN):
        page.meta["search"] = {"exclude": True}
        page.meta["hide"] = ["toc", "navigation"]
    return markdown
