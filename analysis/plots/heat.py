"""A map of layers: modules by rows, blocks by columns, a number in each cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure

from analysis.plots import style
from analysis.text.layer_grid import Layout

_MOST_NUMBERS = 32  # blocks; in narrower cells numbers are illegible


def size(layout: Layout, width: float = style.WIDTH) -> tuple[float, float]:
    """(width, height) in inches of a figure with one map."""
    return max(3.5, min(width, 2.2 + 0.42 * len(layout.blocks))), 0.9 + 0.24 * len(layout.modules)


def draw(
    figure: Figure | SubFigure,
    axes: Axes,
    layout: Layout,
    values: Mapping[str, float],
    text: Callable[[float], str],
    title: str,
    limits: tuple[float, float] | None = None,
) -> None:
    """Draws `values` by layer. limits: of the colours; None for 0 and the values', so that small differences look
    small. Cells without layer are blank.
    """
    table = np.full((len(layout.modules), len(layout.blocks)), np.nan)
    for name, value in values.items():
        table[layout.position[name]] = value
    low, high = limits or (min(0.0, float(np.nanmin(table))), max(0.0, float(np.nanmax(table))))
    norm = Normalize(low, high if high > low else low + 1)
    axes.grid(False)
    mesh = axes.pcolormesh(np.ma.masked_invalid(table), cmap=style.SEQUENTIAL, norm=norm, edgecolors="white", lw=0.5)
    axes.invert_yaxis()
    axes.set_yticks(np.arange(len(layout.modules)) + 0.5, [style.name(name, 32) for name in layout.modules])
    step = 1 + (len(layout.blocks) - 1) // 40
    axes.set_xticks(np.arange(0, len(layout.blocks), step) + 0.5, layout.block_labels[::step])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("block" if None not in layout.blocks else "block (–: outside the blocks)")
    if len(layout.blocks) <= _MOST_NUMBERS:
        points = 6.5 if len(layout.blocks) <= 14 else 4.5
        for (row, column), value in np.ndenumerate(table):
            if np.isfinite(value):
                number(axes, row, column, text(float(value)), float(norm(value)), points)
    bar = figure.colorbar(mesh, ax=axes, label=title, pad=0.02, fraction=0.05)
    bar.outline.set_visible(False)


def number(axes: Axes, row: int, column: int, text: str, shade: float, points: float = 6.5) -> None:
    """Writes a number into a cell, in black or white for contrast. shade: 0 to 1, the position in the colour map."""
    light = np.dot(colormaps[style.SEQUENTIAL](shade)[:3], (0.299, 0.587, 0.114)) > 0.5
    colour = "black" if light else "white"
    axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=points, color=colour, label="_cell")
