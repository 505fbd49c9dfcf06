"""Pictures within the page, as SVG, or as PNG if that is much smaller."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.plots import catalogue

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.plots.kind import Study

LARGE = 128 * 1024  # bytes of an SVG, above which PNG is considered
MOST = 24  # pictures of one kind


@dataclass(frozen=True)
class Image:
    name: str
    caption: str
    source: str  # a data: URL
    width: int  # pixels on the screen
    height: int


@dataclass(frozen=True)
class Kind:
    """The pictures of one kind, and one line for each reason why others are left out."""

    name: str
    summary: str
    images: tuple[Image, ...]
    left_out: tuple[str, ...]


def build(study: Study, only: Iterable[str]) -> list[Kind]:
    """Draws all pictures of these kinds."""
    from analysis.plots.kind import LeftOut
    from analysis.plots.left_out import concerned

    by_kind: dict[str, tuple[str, list[Image], dict[str, list[str]]]] = {}
    for kind, item in catalogue.pictures(study, only):
        _, images, left_out = by_kind.setdefault(kind.name, (kind.summary, [], {}))
        if isinstance(item, LeftOut):
            left_out.setdefault(item.reason, []).append(item.what)
        elif len(images) == MOST:
            more = f"the page holds {MOST} pictures of a kind; `figures --only {kind.name}` draws all"
            left_out.setdefault(more, []).append(item.name)
        else:
            images.append(_image(item.name, item.caption, item.draw()))
    return [
        Kind(
            name,
            summary,
            tuple(images),
            tuple(f"{reason}{concerned(study, what)}" for reason, what in left_out.items()),
        )
        for name, (summary, images, left_out) in by_kind.items()
    ]


def _image(name: str, caption: str, figure: Figure) -> Image:
    from analysis.plots.style import encode

    content, form = encode(figure, "svg"), "svg"
    if len(content) > LARGE:
        content, form = min((content, form), (encode(figure, "png"), "png"), key=lambda pair: len(pair[0]))
    width, height = figure.get_size_inches()
    return image(name, caption, content, form, (width, height))


def image(name: str, caption: str, content: bytes, form: str, inches: tuple[float, float]) -> Image:
    """A picture from the bytes of its file. form: svg or png."""
    kind = {"svg": "svg+xml", "png": "png"}[form]
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return Image(name, caption, source, *(round(100 * length) for length in inches))
