"""The rank map: final ranks by layer and module, as figure 2 of the AdaLoRA paper (arXiv 2303.10512) draws them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from functools import partial

from matplotlib.figure import Figure

from analysis.plots import heat, style
from analysis.plots.kind import Group, Kind, LeftOut, Picture, Study, read
from analysis.records import run_files
from analysis.text.layer_grid import Layout, layout


@style.styled
def draw(grid: Layout, ranks: Mapping[str, float], title: str) -> Figure:
    """Ranks by layer."""
    figure = Figure(figsize=heat.size(grid), layout="constrained")
    axes = figure.add_subplot()
    heat.draw(figure, axes, grid, ranks, cell, "rank")
    axes.set_title(title)
    return figure


def cell(value: float) -> str:
    """A mean of ranks, without decimals if it is whole."""
    return f"{value:.0f}" if value == round(value) else f"{value:.1f}"


def _pictures(study: Study) -> Iterator[Picture | LeftOut]:
    for _, groups in study.tasks():
        for group in groups:
            runs, left_out = read(group, lambda run: run_files.ranks(run.folder)[-1].ranks)
            yield from left_out
            if runs:
                yield _picture(group, [ranks for _, ranks in runs])


def _picture(group: Group, runs: list[dict[str, int]]) -> Picture | LeftOut:
    first = runs[0]
    if any(ranks.keys() != first.keys() for ranks in runs):
        return LeftOut(group.title, "its seeds adapted different layers")
    if len({rank for ranks in runs for rank in ranks.values()}) == 1:
        return LeftOut(group.title, f"every layer ends at one rank ({next(iter(first.values()))}): no map is needed")
    mean = {name: statistics.fmean(ranks[name] for ranks in runs) for name in first}
    count = f"mean of {len(runs)} seeds" if len(runs) > 1 else "one seed"
    total = statistics.fmean(sum(ranks.values()) for ranks in runs)
    caption = f"Final rank of every layer of {group.title}: {count}. All layers together have {cell(total)}."
    if len(runs) > 1:
        sds = {name: statistics.stdev(ranks[name] for ranks in runs) for name in first}
        worst = max(sds, key=lambda name: sds[name])
        caption += f" Between seeds a layer's rank has an sd of up to {sds[worst]:.1f} ({worst})."
    title = f"{group.label}, {group.task}: final ranks, {count}"
    return Picture(group.file("rank-map"), caption, partial(draw, layout(first), mean, title))


KINDS = (Kind("rank-map", "final ranks by layer and module", _pictures),)
