"""A figure with a panel for each kind of module, and below them a map of all layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from analysis.plots import heat, style
from analysis.text.layer_grid import Layout

MOST = 12  # panels; of more kinds of modules, the first ones are drawn


def build(
    layout: Layout, title: str, panel_height: float, *, shared: bool = False
) -> tuple[Figure, SubFigure, list[Axes], SubFigure]:
    """The figure; its upper part and one axes a module in it; its lower part, for `add_map`.

    shared: whether the panels have the same axes.
    """
    count = min(MOST, len(layout.modules))
    columns = 3 if count in (5, 6, 9) else min(4, count)
    lines = math.ceil(count / columns)
    upper, lower = lines * panel_height + 0.35, heat.size(layout)[1] + 0.1
    figure = Figure(figsize=(style.WIDTH, upper + lower), layout="constrained")
    figure.suptitle(title, fontsize=9)
    above, below = parts(figure, 2, 1, height_ratios=(upper, lower))
    every = above.subplots(lines, columns, squeeze=False, sharex=shared, sharey=shared).ravel()
    for spare in every[count:]:
        spare.set_visible(False)
    return figure, above, list(every[:count]), below


def parts(figure: Figure, rows: int, columns: int, **ratios: Any) -> list[SubFigure]:
    """The figure divided into parts, from left to right and top to bottom."""
    # matplotlib returns different types for one part and for several.
    return list(np.asarray(figure.subfigures(rows, columns, **ratios)).ravel())


def add_map(
    part: SubFigure,
    layout: Layout,
    values: Mapping[str, float],
    text: Callable[[float], str],
    title: str,
    limits: tuple[float, float] | None = None,
) -> None:
    """Draws the map of `values` by layer in the lower part."""
    heat.draw(part, part.add_subplot(), layout, values, text, title, limits)


def lines_by_block(
    part: SubFigure, panels: Sequence[Axes], layout: Layout, curves: Mapping[str, np.ndarray], x: str, y: str
) -> None:
    """Draws in each panel a line for each block, from dark (first) to light (last); x starts at 1."""
    numbers = [block for block in layout.blocks if block is not None]
    # The bright end of the colour map is invisible on white.
    colours = LinearSegmentedColormap.from_list("blocks", colormaps[style.SEQUENTIAL](np.linspace(0, 0.88, 64)))
    norm = Normalize(min(numbers, default=0), max(max(numbers, default=1), min(numbers, default=0) + 1))
    for name, values in curves.items():
        row, column = layout.position[name]
        if row < len(panels):
            block = layout.blocks[column]
            colour = colours(norm(block)) if block is not None else style.BLACK
            marker = "." if len(values) <= 24 else ""
            panels[row].plot(
                np.arange(1, len(values) + 1), values, color=colour, marker=marker, ms=3, lw=0.8, label="_curve"
            )
    for number, axes in enumerate(panels):
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        if not any(grid_row == number and len(curves[name]) for name, (grid_row, _) in layout.position.items()):
            axes.text(0.5, 0.5, "zero", transform=axes.transAxes, ha="center", color="#666666")
    name_axes(panels, x, y)
    if len(numbers) > 1:
        part.colorbar(ScalarMappable(norm, colours), ax=list(panels), label="block", pad=0.02, fraction=0.04)


def name_axes(panels: Sequence[Axes], x: str, y: str) -> None:
    """Labels the x axes of the lowest panels and the y axes of the leftmost ones."""
    for axes in panels:
        place = axes.get_subplotspec()
        assert place is not None
        # The last line may have gaps, above which a panel is the lowest of its column.
        if place.is_last_row() or len(panels) - 1 < panels.index(axes) + place.get_gridspec().ncols:
            axes.set_xlabel(x)
            axes.tick_params(labelbottom=True)  # shared axes show them in the last line only
        if place.is_first_col():
            axes.set_ylabel(y)


def span(values: Iterable[float]) -> str:
    """`3.1 to 5.2`, or one number."""
    texts = [style.digits(value) for value in (min(found), max(found))] if (found := list(values)) else ["–"]
    return " to ".join(dict.fromkeys(texts))
