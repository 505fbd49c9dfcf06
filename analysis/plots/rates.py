"""The metric against the learning rate, a panel for each method: its best rate, and how wide the good range is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from analysis.comparison.choice import GOOD, Choice, choices
from analysis.errors import AnalysisError
from analysis.plots import style
from analysis.plots.kind import Kind, LeftOut, Picture, Study, file_name
from analysis.records.discovery import Run

_LEAST = 3  # rates that make a curve
_COLUMNS = 4
_PANEL = 1.25  # inches of a panel's height
_RATE = "optim.lr"


@style.styled
def draw(found: Sequence[Choice], reference: Choice | None, scale: float, y: str) -> Figure:
    """A panel for each of `found`, with the curve of `reference` in grey behind it."""
    rows = -(-len(found) // _COLUMNS)
    columns = min(len(found), _COLUMNS)
    figure = Figure(figsize=(max(3.0, style.WIDTH * columns / _COLUMNS), _PANEL * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, choice in zip(panels.flat, found, strict=False):
        if reference is not None and choice is not reference:
            _curve(axes, reference, scale, "#bbbbbb", "_reference")
        axes.axvspan(*choice.good, color=style.BLUE, alpha=0.12, linewidth=0, label="_good")
        _curve(axes, choice, scale, style.BLUE, "_curve")
        axes.plot([choice.value], [scale * choice.mean], marker="o", color=style.BLUE, markersize=5, label="_best")
        axes.set_title(style.name(choice.variant, 24) + (" (edge)" if choice.edge else ""), fontsize=7)
        _rates(axes)
    for axes in panels.flat[len(found) :]:
        axes.set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel("learning rate")
    figure.supylabel(y, fontsize=8)
    handles = [
        Line2D([], [], marker="o", color=style.BLUE, markersize=5),
        Line2D([], [], linewidth=6, alpha=0.12, color=style.BLUE),
    ]
    names = ["best rate", f"keeps {GOOD:.0%} of the best"]
    if reference is not None:
        handles.append(Line2D([], [], color="#bbbbbb"))
        names.append(style.name(reference.variant))
    style.legend(figure, handles, names, "")
    return figure


def _curve(axes: Axes, choice: Choice, scale: float, colour: str, label: str) -> None:
    """The means by rate; a rate at which a run failed leaves a gap."""
    values = [float("nan") if mean is None else scale * mean for mean in choice.means.values()]
    axes.plot(list(choice.means), values, color=colour, marker=".", markersize=3, label=label)


def _rates(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-")))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.number(value)))


def _pictures(study: Study) -> Iterator[Picture | LeftOut]:
    by_task: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in study.runs.runs:
        by_task[run.record.task][run.record.variant].append(run)
    for task, by_variant in sorted(by_task.items()):
        found: list[Choice] = []
        done = [run for runs in by_variant.values() for run in runs if run.done]
        by = "select" if all(run.record.select for run in done) else "report"  # one split for all panels
        for variant, runs in sorted(by_variant.items()):
            if len({run.record.config.get(_RATE) for run in runs}) < _LEAST:
                yield LeftOut(f"{variant} on {task}", f"fewer than {_LEAST} learning rates")
                continue
            try:
                found += choices(runs, _RATE, by)
            except AnalysisError as error:
                yield LeftOut(f"{variant} on {task}", str(error))
        if found:
            yield _picture(study, task, found, by)


def _picture(study: Study, task: str, found: Sequence[Choice], by: str) -> Picture:
    metric = found[0].metric
    y, scale = study.axis(metric)
    reference = next((choice for choice in found if choice.variant == "lora"), None) if len(found) > 1 else None
    gaps = sorted(choice.variant for choice in found if None in choice.means.values())
    caption = (
        f"{metric} on {task} by learning rate, means over seeds ({', '.join(map(str, found[0].seeds))}) on the "
        f"{'selection' if by == 'select' else 'reported'} split, as `choose --by {by}` decides. The band is the "
        f"unbroken range of rates that keeps {GOOD:.0%} of the best mean; (edge): the best rate is an end of the grid."
    )
    if gaps:
        caption += f" Gaps are rates at which a run failed: {', '.join(gaps)}."
    return Picture(file_name("metric-rate", task), caption, partial(draw, found, reference, scale, f"{task}: {y}"))


KINDS = (Kind("metric-rate", "the metric against the learning rate, a panel for each method", _pictures),)
