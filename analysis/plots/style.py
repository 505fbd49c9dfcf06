"""The style of all figures, and how they are written.

Colours are those of Okabe and Ito 2008 ("Color Universal Design") without the yellow, which white paper
swallows. No colour stands alone: rows of a table have a marker and a line style as well, bars a hatch, and
heat maps go from dark to light in cividis, so that a grey print says the same.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from analysis.tables.formats.markdown import one_line
from analysis.text import numbers
from analysis.text.phrases import shortened

FORMATS = ("png", "svg")

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    "#000000",
)
GREY = "#888888"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "p", ">", "h")
LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\")
SEQUENTIAL = "cividis"
WIDTH = 7.0  # inches: the text width of a page

_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#444444",
    "axes.formatter.use_mathtext": False,
    "axes.grid": True,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.unicode_minus": True,
    "errorbar.capsize": 2,
    "figure.dpi": 100,
    "font.family": ["DejaVu Sans"],  # part of matplotlib, so the same on every machine
    "font.size": 8,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "hatch.linewidth": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.title_fontsize": 7,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "savefig.dpi": 200,
    "svg.fonttype": "path",
    "svg.hashsalt": "loratory",  # makes the ids in an SVG reproducible
    "text.parse_math": False,  # names with dollars are not formulas
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
}

P = ParamSpec("P")
R = TypeVar("R")


@contextlib.contextmanager
def applied() -> Iterator[None]:
    """Applies this style to matplotlib, without the user's settings."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function so that it draws in this style."""

    @functools.wraps(draw)
    def drawn(*arguments: P.args, **keywords: P.kwargs) -> R:
        with applied():
            return draw(*arguments, **keywords)

    return drawn


def encode(figure: Figure, form: str) -> bytes:
    """The bytes of a figure in one of `FORMATS`; the same figure gives the same bytes."""
    file = io.BytesIO()
    # Dates and versions would change the bytes.
    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}[form]
    with applied():
        figure.savefig(file, format=form, metadata=metadata)
    return file.getvalue()


@dataclass(frozen=True)
class Look:
    """The look of a row: colour, line and marker, so that it is distinct without colour too."""

    colour: str
    marker: str
    line: Any


def look(number: int) -> Look:
    """The look of row `number`. The first 385 are distinct."""
    return Look(COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)], LINES[number % len(LINES)])


def name(text: str, most: int = 44) -> str:
    """A name for a figure: one line, truncated, without missing glyphs."""
    text = "".join(letter if _has_glyph(letter) else f"\\u{ord(letter):04x}" for letter in one_line(text))
    text = shortened(text, most)
    # matplotlib omits labels that start with an underscore from legends.
    return f"\u200a{text}" if text.startswith("_") else text


@functools.cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap())


def _has_glyph(letter: str) -> bool:
    return ord(letter) in _glyphs()


def legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], title: str) -> None:
    """Draws a legend below the axes, in as many columns as the longest label allows."""
    longest = max(map(len, labels))
    columns = max(1, min(4, len(labels), int(118 / (longest + 8))))
    figure.legend(handles, labels, title=title, loc="outside lower center", ncols=columns)


def count_axis(axes: Axes, values: Sequence[float]) -> None:
    """Makes an x axis of counts or sizes logarithmic, with room for zero."""
    positive = [value for value in values if value > 0]
    if positive and max(positive) > 20 * min(positive):
        if len(positive) < len(values):
            axes.set_xscale("symlog", linthresh=min(positive) / 2, linscale=0.4)
        else:
            axes.set_xscale("log")
            if max(positive) > 1e4 * min(positive):
                axes.xaxis.set_minor_locator(LogLocator(subs=()))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))


def count(value: float) -> str:
    """A count on an axis: 20k, 331.8k, 22.7M."""
    return re.sub(r"\.0(?=\D|$)", "", numbers.human(value))


def digits(value: float) -> str:
    """Three significant digits, zeros included: 302, 15.3, 7.80."""
    return f"{value:#.3g}".rstrip(".") if value else "0"


def number(value: float) -> str:
    """Any other number on an axis, as short as possible, with a minus sign; a tick that rounding left beside 0 is 0."""
    return f"{0.0 if abs(value) < 1e-12 else value:.6g}".replace("-", "\u2212")


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power_axis(axes: Axes) -> None:
    """Makes a y axis logarithmic, with ticks such as 10⁻², without mathtext."""

    def text(value: float, _: int) -> str:
        exponent = round(math.log10(value)) if value > 0 else 0
        return "10" + str(exponent).translate(_SUPERSCRIPTS) if exponent else "1"

    axes.yaxis.set_major_formatter(FuncFormatter(text))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", which="minor", length=0)


def whole_ticks(axes: Axes) -> None:
    """Puts ticks at whole numbers only, on both axes."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
