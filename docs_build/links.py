"""Links in pages of the repository, as links in the site.

A page may link to any file of the repository, as it is read there. In the site a link to another page leads there,
one to a method's file to its place in the gallery, and one to any other file to a page that shows the file.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SHOWN = "files/"  # where pages that show a file are
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".js": "javascript", ".json": "json"}


def site(
    pages: Mapping[str, str], elsewhere: Mapping[Path, str], anchors: Mapping[Path, str], made: Iterable[str]
) -> dict[str, str]:
    """The texts of all pages of the repository, by their place in the site, with links that lead somewhere there.

    pages: texts of the pages in docs/, by their path in it. elsewhere: places of pages outside of it.
    anchors: places of files that a generated page describes. made: places of the generated pages, which may be linked
    to as if they were in docs/. Raises `ValueError` for a link to nothing.
    """
    sources = {DOCS / name: name for name in pages} | dict(elsewhere)
    places = sources | dict(anchors) | {DOCS / place: place for place in made}
    shown: dict[Path, str] = {}
    found = {}
    for source, place in sources.items():
        text = pages[place] if place in pages and source.is_relative_to(DOCS) else source.read_text(encoding="utf-8")
        found[place] = _outside_code(text, functools.partial(_target, source, place, places, shown))
    for path in list(shown):  # a folder adds its files
        if path.is_dir():
            shown |= {file: f"{SHOWN}{_name(file)}.md" for file in _files(path)}
    return found | {place: _showing(path, place, shown) for path, place in shown.items()}


def _outside_code(text: str, replace: Callable[[str], str]) -> str:
    parts = _FENCE.split(text)
    parts[::2] = [_LINK.sub(lambda m: f"{m[1]}{replace(m[2])}{m[3]}", part) for part in parts[::2]]
    return "".join(parts)


def _target(source: Path, place: str, places: Mapping[Path, str], shown: dict[Path, str], target: str) -> str:
    """What a link to `target` in the page `source` is in the page `place` of the site."""
    name, mark, anchor = target.partition("#")
    if "://" in target or not name:
        return target
    path = (source.parent / name).resolve()
    if not (path in places or path.exists()) or not path.is_relative_to(ROOT):
        raise ValueError(f"{source.relative_to(ROOT)}: no such file: {target}")
    if path in places:
        there = places[path]
    elif path.is_relative_to(DOCS):
        there = path.relative_to(DOCS).as_posix()
    else:
        there = shown[path] = f"{SHOWN}{_name(path)}.md"
    there, _, own = there.partition("#")
    relative = os.path.relpath(there, os.path.dirname(place) or ".")
    return f"{relative}{mark}{anchor}" if anchor else f"{relative}#{own}" if own else relative


def _name(path: Path) -> str:
    """A file's path as the name of a page; MkDocs would take README for the index of its folder."""
    return path.relative_to(ROOT).as_posix()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def _showing(path: Path, place: str, shown: Mapping[Path, str]) -> str:
    title = f"# {_name(path)}\n\n"
    if path.is_dir():
        there = [(_name(file), os.path.relpath(shown[file], os.path.dirname(place))) for file in _files(path)]
        return title + "\n".join(f"- [`{name}`]({link})" for name, link in there) + "\n"
    language = _LANGUAGES.get(path.suffix, "text")
    return f"{title}````{language}\n{path.read_text(encoding='utf-8').rstrip()}\n````\n"
