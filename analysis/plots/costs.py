"""The metric against parameters, memory and time, with the Pareto front."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from analysis.plots import style
from analysis.plots.kind import Group, Kind, LeftOut, Picture, Study, file_name, seeds
from analysis.stats.matrices import pareto_front
from analysis.tables.costs import training_memory
from analysis.text import numbers
from trainer.record import Record

_SIZE = 6.0  # of a marker, in points
_MOST_NAMED = 10  # rows with their own look; of more rows, only those on the front have one


@dataclass(frozen=True)
class Point:
    """One row: means over its n runs, and their sd (ddof 1) for several runs."""

    label: str
    look: style.Look
    cost: float
    cost_sd: float | None
    value: float
    value_sd: float | None
    n: int


@dataclass(frozen=True)
class Axis:
    """A cost. text: the format of its ticks."""

    name: str
    title: str
    of: Callable[[Record], float | None]
    text: Callable[[float], str]
    explained: str


AXES = (
    Axis(
        "parameters",
        "effective parameters at the end (head left out)",
        lambda record: record.params.effective,
        numbers.human,
        "Effective parameters are the adapter's that a mask or a zero rank has not switched off.",
    ),
    Axis(
        "memory",
        "training memory in MiB",
        lambda record: _scaled(training_memory(record.memory), 2**-20),
        numbers.human,
        "Memory is weights, gradients, optimizer state and saved activations.",
    ),
    Axis(
        "time",
        "training time in seconds",
        lambda record: record.time.train,
        numbers.human,
        "Time is that of the training steps; runs that shared a machine with others are slower than they need be.",
    ),
)


@style.styled
def draw(points: Sequence[Point], front: Sequence[int], higher_is_better: bool, x: str, y: str) -> Figure:
    """Draws points with error bars, and the front as a staircase with filled markers. front: indices of `points`."""
    figure = Figure(figsize=(style.WIDTH, 4.2), layout="constrained")
    axes = figure.add_subplot()
    style.count_axis(axes, [point.cost for point in points])
    on_front = set(front)
    named = [k for k in range(len(points)) if len(points) <= _MOST_NAMED or k in on_front]
    handles: list[Line2D] = []
    sizes = _sizes(axes, points) if len(points) <= _MOST_NAMED else [_SIZE] * len(points)
    for k, point in enumerate(points):
        is_named = k in named
        colour, marker = (point.look.colour, point.look.marker) if is_named else (style.GREY, ".")
        look: dict[str, Any] = {
            "linestyle": "none",
            "marker": marker,
            "color": colour,
            "markerfacecolor": colour if k in on_front else "white",
            "markeredgewidth": 1.2,
        }
        axes.errorbar(
            [point.cost],
            [point.value],
            yerr=point.value_sd,
            xerr=point.cost_sd,
            fmt="none",
            ecolor=colour,
            elinewidth=0.8,
            capsize=sizes[k] / 2 if is_named else 0,
            zorder=2 + is_named,
        )
        axes.plot([point.cost], [point.value], **look, markersize=sizes[k], zorder=3 + is_named, label="_point")
        if is_named:
            handles.append(Line2D([], [], **look, markersize=_SIZE))
    labels = [points[k].label for k in named]
    left, right = axes.get_xlim()
    stairs = [(points[k].cost, points[k].value) for k in front]
    # To the right of the last point of the front nothing is better.
    axes.plot(
        [*(cost for cost, _ in stairs), right],
        [*(value for _, value in stairs), stairs[-1][1]],
        drawstyle="steps-post",
        color="#666666",
        linewidth=0.9,
        linestyle="--",
        zorder=1,
        label="_front",
    )
    axes.set_xlim(left, right)
    if len(named) < len(points):
        handles.append(Line2D([], [], linestyle="none", marker=".", color=style.GREY, markerfacecolor="white"))
        labels.append(f"not on the front ({len(points) - len(named)} rows)")
    handles.append(Line2D([], [], color="#666666", linewidth=0.9, linestyle="--"))
    labels.append("Pareto front (filled marks)")
    axes.set_xlabel(x)
    axes.set_ylabel(y if higher_is_better else f"{y} (lower is better)")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.number(value)))
    style.legend(figure, handles, labels, seeds(point.n for point in points))
    return figure


def _sizes(axes: Axes, points: Sequence[Point]) -> list[float]:
    """Sizes of markers: one that a later marker would cover is larger."""
    # Positions on the screen, on a logarithmic axis too.
    positions = axes.transScale.transform([(point.cost, point.value) for point in points])
    near = np.maximum(np.ptp(positions, axis=0), 1e-9) * (0.02, 0.03)
    covers = [(np.abs(positions[k + 1 :] - position) < near).all(axis=1).sum() for k, position in enumerate(positions)]
    return [_SIZE + 3.0 * min(int(count), 3) for count in covers]


def _pictures(axis: Axis, study: Study) -> Iterator[Picture | LeftOut]:
    for column, groups in study.tasks():
        if column.unmarked:
            yield LeftOut(column.task, f"which row is better can't be said: {column.unmarked}")
            continue
        y, scale = study.axis(column.metric)
        points: list[Point] = []
        for group in groups:
            point = _point(group, axis, scale)
            if isinstance(point, Point):
                points.append(point)
            else:
                yield point
        if not points:
            continue
        higher = groups[0].runs[0].record.metric.higher_is_better is not False
        front = pareto_front([p.cost for p in points], [p.value for p in points], higher)
        reading = f", {column.reading}" if column.reading else ""
        caption = (
            f"{column.metric or 'metric'} on {column.task} ({column.reading or 'checkpoint not recorded'}) against "
            f"{axis.title}: {seeds(p.n for p in points)}. {axis.explained} "
            f"On the Pareto front (no row is as cheap and better): {', '.join(points[k].label for k in front)}."
        )
        draws = partial(draw, points, front, higher, axis.title, f"{groups[0].task}: {y}{reading}")
        yield Picture(file_name(f"metric-{axis.name}", column.task), caption, draws)


def _point(group: Group, axis: Axis, scale: float) -> Point | LeftOut:
    costs = [axis.of(run.record) for run in group.runs]
    known = [cost for cost in costs if cost is not None]
    if len(known) < len(costs):
        return LeftOut(group.title, f"{axis.name} not recorded in {len(costs) - len(known)} of {len(costs)} runs")
    cell = group.cell
    assert cell.mean is not None
    return Point(
        group.label,
        group.look,
        statistics.fmean(known),
        (statistics.stdev(known) or None) if len(known) > 1 else None,  # None if the cost does not depend on the seed
        scale * cell.mean,
        None if cell.sd is None else scale * cell.sd,
        cell.n,
    )


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


KINDS = tuple(
    Kind(
        f"metric-{axis.name}",
        f"the metric against {axis.title}, with the Pareto front",
        partial(_pictures, axis),
    )
    for axis in AXES
)
