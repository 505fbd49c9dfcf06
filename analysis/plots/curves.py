"""Learning curves: the metric on the selection split, and the training loss, over optimizer steps."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.plots import style
from analysis.plots.kind import Group, Kind, LeftOut, Picture, Study, file_name, pages, read, seeds
from analysis.records import run_files

MOST = 8  # rows in one picture; more lines are illegible
_LOSS = "train/task_loss"


@dataclass(frozen=True)
class Curve:
    """Means of n runs at the positions on x that all of them have, and their sd (ddof 1; zero for one run)."""

    label: str
    look: style.Look
    positions: Sequence[int]
    means: Sequence[float]
    sds: Sequence[float]
    n: int


def average(group: Group, runs: Sequence[Mapping[int, float]]) -> Curve | None:
    """The curve of runs, each a value by position on x; None if they have no position in common."""
    positions = sorted(set.intersection(*map(set, runs))) if runs else []
    if not positions:
        return None
    columns = [[run[x] for run in runs] for x in positions]
    sds = [statistics.stdev(column) if len(column) > 1 else 0.0 for column in columns]
    return Curve(group.label, group.look, positions, [statistics.fmean(column) for column in columns], sds, len(runs))


@style.styled
def draw(panels: Sequence[tuple[str, Sequence[Curve]]], x: str = "optimizer step") -> Figure:
    """Draws a panel for each (name of the y axis, curves), with a band of ± sd for several runs."""
    figure = Figure(figsize=(style.WIDTH, 3.2), layout="constrained")
    handles: dict[str, Line2D] = {}
    for axes, (name, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for curve in curves:
            handles.setdefault(curve.label, _line(axes, curve))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel(x)
        axes.set_ylabel(name)
    counts = [curve.n for _, curves in panels for curve in curves]
    style.legend(figure, list(handles.values()), list(handles), seeds(counts, "line and band: mean ± sd over seeds"))
    return figure


def _line(axes: Axes, curve: Curve) -> Line2D:
    look = curve.look
    (line,) = axes.plot(
        curve.positions,
        curve.means,
        linestyle=look.line,
        color=look.colour,
        marker=look.marker,
        markevery=max(1, len(curve.positions) // 8),
        label="_curve",
    )
    if curve.n > 1:
        low = [mean - sd for mean, sd in zip(curve.means, curve.sds, strict=True)]
        high = [mean + sd for mean, sd in zip(curve.means, curve.sds, strict=True)]
        axes.fill_between(curve.positions, low, high, color=look.colour, alpha=0.12, linewidth=0, label="_band")
        # Edges distinguish bands that overlap.
        for edge in (low, high):
            axes.plot(curve.positions, edge, linestyle=look.line, color=look.colour, linewidth=0.5, alpha=0.7)
    return line


def _pictures(study: Study) -> Iterator[Picture | LeftOut]:
    for column, groups in study.tasks():
        curves: dict[str, dict[str, Curve]] = {}  # by row, then by panel
        short: dict[str, str] = {}  # rows whose runs differ in length
        drawn: list[Group] = []
        for group in groups:
            runs, left_out = read(group, lambda run: run_files.metrics(run.folder))
            yield from left_out
            lines = [found for _, found in runs]
            metric = f"eval/{column.metric or group.runs[0].record.metric.name}"
            _, scale = study.axis(column.metric)
            found = {
                name: average(group, [_values(entries, name, factor) for entries in lines])
                for name, factor in ((metric, scale), (_LOSS, 1.0))
            }
            if not lines:
                continue
            if empty := [name for name, curve in found.items() if curve is None]:
                yield LeftOut(group.title, f"metrics.jsonl: no step at which all runs have {', '.join(empty)}")
                continue
            curves[group.row.label] = {name: curve for name, curve in found.items() if curve is not None}
            drawn.append(group)
            ends = {entries[-1]["step"] for entries in lines}
            if len(ends) > 1:
                short[group.row.label] = f"{min(ends)} to {max(ends)}"
        for ending, page in pages(drawn, MOST):
            yield _picture(study, column.metric, column.task, ending, page, curves, short)


def _picture(
    study: Study,
    metric: str | None,
    task: str,
    ending: str,
    page: Sequence[Group],
    curves: Mapping[str, Mapping[str, Curve]],
    short: Mapping[str, str],
) -> Picture:
    y, _ = study.axis(metric)
    first, second = ([list(curves[group.row.label].values())[place] for group in page] for place in (0, 1))
    counts = seeds(curve.n for curve in first)
    splits = sorted({"a part of train" if g.runs[0].record.data.protocol == "split" else "validation" for g in page})
    caption = (
        f"Left: {metric or 'metric'} on the split of {task} that selects the checkpoint ({', '.join(splits)}), of "
        f"whatever model was there at that step. Right: the task's training loss, a mean since the entry before, "
        f"without penalties. {counts[0].upper()}{counts[1:]}; bands and lines only where all seeds have an entry."
    )
    ended = [f"{g.row.label} ({short[g.row.label]})" for g in page if g.row.label in short]
    if ended:
        caption += f" Seeds ended at different steps, and the curve where the first did: {', '.join(ended)}."
    panels = [(f"{page[0].task}: {y}, selection split", first), ("training loss", second)]
    return Picture(file_name("learning-curves", task, ending), caption, partial(draw, panels))


def _values(lines: Iterable[run_files.Line], name: str, scale: float) -> dict[int, float]:
    """The values that a run logged under `name`, by step."""
    return {line["step"]: scale * line[name] for line in lines if line.get(name) is not None}


KINDS = (Kind("learning-curves", "the metric and the training loss over steps, with their spread", _pictures),)
