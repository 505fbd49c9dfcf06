"""The metric of every seed, row by row: what a table's mean ± sd leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from analysis.plots import style
from analysis.plots.kind import Kind, LeftOut, Picture, Study, file_name, pages, seeds

_MOST = 40  # rows of a page
_ROW = 0.2  # inches


@dataclass(frozen=True)
class Line:
    """One row: the metric of each seed, its mean, and sd (ddof 1) for several. colour: the row's in all figures."""

    label: str
    colour: str
    values: Sequence[float]
    mean: float
    sd: float | None
    text: str  # as the table's cell


@style.styled
def draw(lines: Sequence[Line], x: str) -> Figure:
    """Draws the lines from top to bottom: a dot for each seed, a bar for the mean, a band for ± sd."""
    figure = Figure(figsize=(style.WIDTH, 1.3 + _ROW * len(lines)), layout="constrained")
    axes = figure.add_subplot()
    for place, line in enumerate(lines):
        if line.sd:
            ends = [line.mean - line.sd, line.mean + line.sd]
            axes.plot(ends, [place, place], color=line.colour, linewidth=5, alpha=0.25, solid_capstyle="butt")
        axes.plot([line.mean], [place], marker="|", markersize=9, markeredgewidth=1.6, color=line.colour, label="_mean")
        axes.plot(
            line.values,
            [place] * len(line.values),
            linestyle="none",
            marker="o",
            markersize=3.5,
            markerfacecolor="white",
            markeredgewidth=0.9,
            color=line.colour,
            label="_seeds",
        )
        axes.annotate(line.text, (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=6.5)
    axes.set_yticks(range(len(lines)), [line.label for line in lines])
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(x)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: style.number(value)))
    mark: dict[str, Any] = {"linestyle": "none", "color": style.GREY}
    handles = [
        Line2D([], [], marker="o", markersize=3.5, markerfacecolor="white", **mark),
        Line2D([], [], marker="|", markersize=9, markeredgewidth=1.6, **mark),
        Line2D([], [], color=style.GREY, linewidth=5, alpha=0.25, solid_capstyle="butt"),
    ]
    style.legend(figure, handles, ["a seed", "mean", "± sd over seeds"], "")
    return figure


def _pictures(study: Study) -> Iterator[Picture | LeftOut]:
    for column, groups in study.tasks():
        if column.unmarked:
            yield LeftOut(column.task, f"which row is better can't be said: {column.unmarked}")
            continue
        name, scale = study.axis(column.metric)
        higher = groups[0].runs[0].record.metric.higher_is_better is not False
        lines: list[Line] = []
        for group in groups:
            spread = group.cell.spread
            assert spread is not None
            values = [scale * value for run in group.runs if (value := run.record.metric.value) is not None]
            sd = None if spread.sd is None else scale * spread.sd
            text = f"{spread.mean_text} ± {spread.sd_text} ({spread.n})" if spread.sd_text else spread.mean_text
            lines.append(Line(group.label, group.look.colour, values, scale * spread.mean, sd, text))
        lines.sort(key=lambda line: -line.mean if higher else line.mean)
        reading = f", {column.reading}" if column.reading else ""
        x = f"{groups[0].task}: {name}{reading}" + ("" if higher else " (lower is better)")
        caption = (
            f"{column.metric or 'metric'} of every seed on {column.task} "
            f"({column.reading or 'checkpoint not recorded'}), the best mean first: "
            f"{seeds(len(line.values) for line in lines)}. `compare` says which differences are shown."
        )
        for number, page in pages(lines, _MOST):
            yield Picture(file_name("metric-seeds", column.task, number), caption, partial(draw, page, x))


KINDS = (Kind("metric-seeds", "the metric of every seed, row by row", _pictures),)
