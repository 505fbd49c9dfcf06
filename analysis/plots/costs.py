"""The metric against parameters, memory and time: which rows does no cheaper row beat?"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from analysis.plots import labels, style
from analysis.plots.kind import Group, Kind, LeftOut, Picture, Study, file_name, seeds
from analysis.stats.matrices import unbeaten
from analysis.tables.costs import training_memory
from trainer.record import Record

_SIZE = 5.0  # of a marker, in points
_SLACK = 0.01  # costs that differ by less are equal: budgets are met to one rank of a layer
_FRAME = 1.5  # inches of a figure below and above its axes


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
    """A cost."""

    name: str
    title: str
    of: Callable[[Record], float | None]
    explained: str


AXES = (
    Axis(
        "parameters",
        "effective parameters at the end (head left out)",
        lambda record: record.params.effective,
        "Effective parameters are the adapter's that a mask or a zero rank has not switched off.",
    ),
    Axis(
        "memory",
        "training memory in MiB",
        lambda record: _scaled(training_memory(record.memory), 2**-20),
        "Memory is weights, gradients, optimizer state and saved activations.",
    ),
    Axis(
        "time",
        "training time in seconds",
        lambda record: record.time.train,
        "Time is that of the training steps; runs that shared a machine with others are slower than they need be.",
    ),
)


@style.styled
def draw(points: Sequence[Point], front: Sequence[int], higher_is_better: bool, x: str, y: str) -> Figure:
    """Draws points with error bars and names; those of `front` (indices of `points`) are filled."""
    height = max(3.0, labels.HEIGHT * len(points))
    figure = Figure(figsize=(style.WIDTH, height + _FRAME), layout="constrained")
    axes = figure.add_subplot()
    style.count_axis(axes, [point.cost for point in points])
    for k, point in enumerate(points):
        colour = point.look.colour
        axes.errorbar(
            [point.cost],
            [point.value],
            yerr=point.value_sd,
            xerr=point.cost_sd,
            fmt="none",
            ecolor=colour,
            elinewidth=0.7,
            alpha=0.6,
            zorder=2,
        )
        axes.plot(
            [point.cost],
            [point.value],
            linestyle="none",
            marker=point.look.marker,
            color=colour,
            markerfacecolor=colour if k in front else "white",
            markersize=_SIZE,
            zorder=3,
            label="_point",
        )
    axes.set_xlabel(x)
    axes.set_ylabel(y if higher_is_better else f"{y} (lower is better)")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.number(value)))
    named = [labels.Label(point.label, point.cost, point.value, point.look.colour) for point in points]
    longest = max(len(point.label) for point in points)
    labels.name_points(axes, named, (style.WIDTH - 0.8 - 0.06 * longest, height))
    if any(point.n > 1 for point in points):
        marks = [(style.GREY, "no row that costs as little is shown to be better"), ("white", "such a row is")]
        handles = [
            Line2D([], [], linestyle="none", marker="o", color=style.GREY, markerfacecolor=face, markersize=_SIZE)
            for face, _ in marks
        ]
        style.legend(figure, handles, [text for _, text in marks], seeds(point.n for point in points))
    return figure


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
        errors = [None if point.value_sd is None else point.value_sd / point.n**0.5 for point in points]
        front = unbeaten([p.cost for p in points], [p.value for p in points], errors, higher, _SLACK)
        reading = f", {column.reading}" if column.reading else ""
        caption = (
            f"{column.metric or 'metric'} on {column.task} ({column.reading or 'checkpoint not recorded'}) against "
            f"{axis.title}: {seeds(p.n for p in points)}. {axis.explained} {_said(points, front)}"
        )
        draws = partial(draw, points, front, higher, axis.title, f"{groups[0].task}: {y}{reading}")
        yield Picture(file_name(f"metric-{axis.name}", column.task), caption, draws)


def _said(points: Sequence[Point], front: Sequence[int]) -> str:
    if all(point.n == 1 for point in points):
        return "Of one seed each, no row is shown to be better than another."
    if len(front) == len(points):
        return "No row is shown to be worse than one that costs as little."
    return (
        "Filled: no row that costs as little (or up to 1 % more) is better by more than two standard errors of the "
        f"difference; they are {', '.join(points[k].label for k in front)}."
    )


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
        f"the metric against {axis.title}, and which rows no cheaper row beats",
        partial(_pictures, axis),
    )
    for axis in AXES
)
