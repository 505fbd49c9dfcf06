"""Sparse updates: their patterns, and how much two seeds agree."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from analysis.plots import by_module, heat, style
from analysis.plots.kind import Group, Kind, LeftOut, Picture, Study, read
from analysis.records.adapter_file import Pattern, Saved
from analysis.records.runs import Run
from analysis.stats.matrices import chance_jaccard, jaccard
from analysis.text.layer_grid import Layout, layout

Patterns = Mapping[str, Pattern]

_BINS = 64  # cells of a panel along each side, at most


@style.styled
def draw_pattern(grid: Layout, patterns: Patterns, block: int, title: str) -> Figure:
    """Panels: the matrix of each module in one block. Map: the density of all layers."""
    figure, above, panels, below = by_module.build(grid, title, 1.6)
    shown = _of_block(grid, patterns, block)
    densities = {number: shares(patterns[name]) for number, name in shown.items()}
    top = max(found.max() for found in densities.values())
    for number, axes in enumerate(panels):
        axes.grid(False)
        axes.set_xticks([])
        axes.set_yticks([])
        label = style.name(grid.modules[number], 30)
        if number not in shown:
            axes.set_title(f"{label}\nnot in this block")
            continue
        mesh = axes.pcolormesh(densities[number], cmap="Greys", vmin=0, vmax=top)
        axes.invert_yaxis()
        axes.spines[:].set_visible(True)
        rows, columns = patterns[shown[number]].shape
        axes.set_title(f"{label}\n{rows}×{columns}, {_percent(patterns[shown[number]].density)}")
    above.colorbar(mesh, ax=panels, label="share of entries", pad=0.02, fraction=0.04)
    values = {name: 100 * pattern.density for name, pattern in patterns.items()}
    by_module.add_map(below, grid, values, style.digits, "entries in %", (0.0, max(values.values())))
    return figure


@style.styled
def draw_overlap(
    grid: Layout, by_layer: Mapping[str, float], matrix: np.ndarray, seeds: Sequence[int], title: str, chance: str
) -> Figure:
    """Left: Jaccard index of every two seeds over all layers. Right: by layer, the mean over pairs of seeds."""
    height = max(heat.size(grid)[1], 2.3)
    figure = Figure(figsize=(style.WIDTH, height), layout="constrained")
    figure.suptitle(title, fontsize=9)
    left, right = by_module.parts(figure, 1, 2, width_ratios=(1, 2.6))
    axes = left.add_subplot()
    axes.grid(False)
    axes.pcolormesh(matrix, cmap=style.SEQUENTIAL, vmin=0, vmax=1, edgecolors="white", lw=0.5)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    ticks = np.arange(len(seeds)) + 0.5
    axes.set_xticks(ticks, [str(seed) for seed in seeds])
    axes.set_yticks(ticks, [str(seed) for seed in seeds])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("seed")
    axes.set_ylabel("seed")
    axes.set_title("all layers")
    if len(seeds) <= 10:
        for (row, column), value in np.ndenumerate(matrix):
            heat.number(axes, row, column, f"{value:.2f}", value)
    label = f"Jaccard index\n(chance: {chance})"
    heat.draw(right, right.add_subplot(), grid, by_layer, lambda value: f"{value:.2f}", label, (0.0, 1.0))
    return figure


def shares(pattern: Pattern, bins: int = _BINS) -> np.ndarray:
    """The pattern at low resolution: the density of each cell of a grid of at most bins × bins."""
    rows, columns = pattern.shape
    edges = [np.linspace(0, side, min(side, bins) + 1).round() for side in (rows, columns)]
    counts, _, _ = np.histogram2d(pattern.indices // columns, pattern.indices % columns, bins=edges)
    return counts / np.outer(np.diff(edges[0]), np.diff(edges[1]))


def _of_block(grid: Layout, patterns: Patterns, block: int) -> dict[int, str]:
    """The layers of one block, by module."""
    return {grid.position[name][0]: name for name in patterns if grid.position[name][1] == block}


def _patterns(study: Study) -> Iterator[Picture | LeftOut]:
    for _, groups in study.tasks():
        for group in groups:
            runs, left_out = read(group, _read)
            yield from left_out
            if not runs:
                continue
            run, patterns = runs[0]
            grid = layout(patterns)
            block = len(grid.blocks) // 2
            entries = sum(len(pattern.indices) for pattern in patterns.values())
            size = sum(pattern.size for pattern in patterns.values())
            caption = (
                f"Where the update of {group.title}, seed {run.record.seed}, has entries: {entries:,} of {size:,} "
                f"({_percent(entries / size)}). Panels: the matrices of block {grid.block_labels[block]}, rows from "
                f"top to bottom, in at most {_BINS}×{_BINS} cells; the darker, the larger the share of a cell's "
                "entries. Map: the share of every layer."
            )
            where = f"seed {run.record.seed}, block {grid.block_labels[block]}"
            title = f"{group.label}, {group.task}: pattern of {where}"
            yield Picture(group.file("sparsity-pattern"), caption, partial(draw_pattern, grid, patterns, block, title))


def _overlaps(study: Study) -> Iterator[Picture | LeftOut]:
    for _, groups in study.tasks():
        for group in groups:
            runs, left_out = read(group, _read)
            yield from left_out
            if len(runs) == 1:
                yield LeftOut(group.title, "one seed: an overlap needs two")
            elif runs:
                yield _overlap(group, runs)


def _overlap(group: Group, runs: Sequence[tuple[Run, Patterns]]) -> Picture | LeftOut:
    first = runs[0][1]
    shapes = {name: pattern.shape for name, pattern in first.items()}
    if any({name: p.shape for name, p in found.items()} != shapes for _, found in runs):
        return LeftOut(group.title, "its seeds have patterns of different matrices")
    pairs = list(itertools.combinations(range(len(runs)), 2))
    by_layer: dict[str, float] = {}
    matrix = np.eye(len(runs))
    chances: list[float] = []
    for name in first:
        of_name = [found[name] for _, found in runs]
        by_layer[name] = float(np.mean([jaccard(of_name[i].indices, of_name[j].indices) for i, j in pairs]))
    for i, j in pairs:
        one, two = _together(runs[i][1]), _together(runs[j][1])
        matrix[i, j] = matrix[j, i] = jaccard(one, two)
        chances.append(chance_jaccard(len(one), len(two), sum(pattern.size for pattern in first.values())))
    values = [matrix[i, j] for i, j in pairs]
    chance = f"{np.mean(chances):.3f}"
    caption = (
        f"Jaccard index |∩| / |∪| of the indices at which two seeds of {group.title} have entries. Left: all layers "
        f"together, for every two of {len(runs)} seeds (mean {np.mean(values):.3f}); patterns drawn independently "
        f"would have about {chance}. Right: by layer, mean over {len(pairs)} pairs of seeds."
    )
    if len(set(values)) == 1 and values[0] == 1:
        caption += " All seeds have one pattern: what chooses it does not depend on the seed."
    title = f"{group.label}, {group.task}: overlap of the patterns of {len(runs)} seeds"
    draws = partial(draw_overlap, layout(first), by_layer, matrix, [run.record.seed for run, _ in runs], title, chance)
    return Picture(group.file("sparsity-overlap"), caption, draws)


def _together(patterns: Patterns) -> np.ndarray:
    """The indices of all layers in the concatenation of their flattened matrices."""
    ends = itertools.accumulate(pattern.size for pattern in patterns.values())
    return np.concatenate([p.indices + end - p.size for p, end in zip(patterns.values(), ends, strict=True)])


def _read(run: Run) -> Patterns:
    return Saved(run.folder, run.record.files).patterns()


def _percent(share: float) -> str:
    return f"{style.digits(100 * share)} %"


KINDS = (
    Kind("sparsity-pattern", "where a sparse update has entries", _patterns),
    Kind("sparsity-overlap", "how far the patterns of two seeds agree (Jaccard)", _overlaps),
)
