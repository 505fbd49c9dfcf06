"""Figures of a backbone's spectrum: singular values, energy, recommended ranks, errors of decompositions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator

from analysis.plots import by_module, heat, spectrum, style
from analysis.plots.kind import Picture, file_name
from analysis.text.layer_grid import Layout, layout
from weights.backbone import Layer


@style.styled
def draw_energy(grid: Layout, layers: Sequence[Layer], shares: Sequence[float], title: str) -> Figure:
    """Panels: the fraction of ‖W‖² in the first i directions. Map: the directions for the first of `shares`."""
    figure, above, panels, below = by_module.build(grid, title, 1.5, shared=True)
    by_module.lines_by_block(above, panels, grid, {layer.name: layer.energy for layer in layers}, "i", "share of ‖W‖²")
    for number, axes in enumerate(panels):
        axes.set_ylim(0, 1.03)
        for share in shares:
            axes.axhline(share, color="#666666", lw=0.7, ls="--", label="_share")
        axes.set_title(style.name(grid.modules[number], 30))
    counts = {layer.name: float(np.searchsorted(layer.energy, shares[0]) + 1) for layer in layers}
    by_module.add_map(below, grid, counts, style.count, f"directions for {100 * shares[0]:g} %")
    return figure


@style.styled
def draw_ranks(grid: Layout, ranks: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """Draws a map for each rule: the rank that it recommends, by layer."""
    width, height = heat.size(grid)
    figure = Figure(figsize=(width, height * len(ranks)), layout="constrained")
    figure.suptitle(title, fontsize=9)
    for axes, (rule, values) in zip(figure.subplots(len(ranks), 1, squeeze=False)[:, 0], ranks.items(), strict=True):
        heat.draw(figure, axes, grid, values, style.count, "rank")
        axes.set_title(rule)
    return figure


@style.styled
def draw_errors(grid: Layout, layers: Sequence[Layer], methods: Sequence[str], title: str) -> Figure:
    """Draws a panel for each kind of module: the relative error of each method over the rank, means over blocks."""
    count = min(by_module.MOST, len(grid.modules))
    columns = min(3, count)
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(style.WIDTH, 0.9 + 1.7 * lines), layout="constrained")
    figure.suptitle(title, fontsize=9)
    every = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    handles: dict[str, Line2D] = {}
    for number, axes in enumerate(every):
        if number >= count:
            axes.set_visible(False)
            continue
        here = [layer for layer in layers if grid.position[layer.name][0] == number]
        for place, method in enumerate(methods):
            ranks = sorted({rank for layer in here for name, rank in layer.errors if name == method})
            errors = [
                np.mean([layer.errors[method, rank] for layer in here if (method, rank) in layer.errors])
                for rank in ranks
            ]
            look = style.look(place)
            # Methods may overlap, so markers are hollow and the first is the largest.
            (line,) = axes.plot(
                ranks,
                errors,
                linestyle=look.line,
                color=look.colour,
                marker=look.marker,
                markersize=8 - 1.4 * place,
                markerfacecolor="none",
                label="_curve",
            )
            handles.setdefault(method.replace("_", " "), line)
        given = sorted({rank for layer in layers for _, rank in layer.errors})
        axes.xaxis.set_major_locator(FixedLocator(given) if len(given) <= 6 else MaxNLocator(5, integer=True))
        axes.set_title(style.name(grid.modules[number], 30))
    by_module.name_axes(list(every[:count]), "rank", "‖W − Wᵣ‖ / ‖W‖")
    style.legend(figure, list(handles.values()), list(handles), "means over blocks")
    return figure


def pictures(model: str, layers: Sequence[Layer], shares: Sequence[float], methods: Sequence[str]) -> Iterator[Picture]:
    """All figures of a backbone. shares: fractions of the energy for which ranks are recommended."""
    grid = layout(layer.name for layer in layers)
    relative = {layer.name: layer.singular_values / layer.singular_values[0] for layer in layers}
    effective = {layer.name: layer.effective_rank for layer in layers}
    yield Picture(
        file_name("backbone-spectrum", model),
        "Singular values of every weight over its largest. Effective rank: the exponential of the entropy of σ/Σσ "
        "(Roy and Vetterli 2007).",
        partial(spectrum.draw, grid, relative, effective, f"{style.name(model)}: spectrum of W", "W"),
    )
    yield Picture(
        file_name("backbone-energy", model),
        "Share of the energy ‖W‖² that the first i directions hold; the lines are at "
        f"{', '.join(f'{100 * share:g} %' for share in shares)}. Map: directions for the first of these.",
        partial(draw_energy, grid, layers, shares, f"{style.name(model)}: energy of W"),
    )
    ranks: dict[str, dict[str, float]] = {}
    for layer in layers:
        for rule, rank in layer.ranks.items():
            ranks.setdefault(rule, {})[layer.name] = rank
        ranks.setdefault("effective rank", {})[layer.name] = math.ceil(layer.effective_rank)
    yield Picture(
        file_name("backbone-ranks", model),
        "The rank that each rule recommends: the fewest directions with a share of the energy; those above Gavish and "
        "Donoho's threshold, which takes W for a low-rank matrix in white noise; the effective rank, rounded up.",
        partial(draw_ranks, grid, ranks, f"{style.name(model)}: recommended ranks"),
    )
    if any(layer.errors for layer in layers):
        yield Picture(
            file_name("backbone-errors", model),
            "Relative error of each decomposition at the given ranks, means over blocks. The truncated SVD is the best "
            "there is; nmf factorises the positive and the negative part of W apart.",
            partial(draw_errors, grid, layers, methods, f"{style.name(model)}: error of decompositions"),
        )
