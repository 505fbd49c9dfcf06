"""The parts of the training memory, as stacked bars."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from analysis.plots import style
from analysis.plots.kind import Group, Kind, LeftOut, Picture, Study, file_name, pages
from analysis.text import numbers

MOST = 30  # bars in one picture
PARTS = ("weights", "gradients", "optimizer", "activations")
_COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.SKY)


@dataclass(frozen=True)
class Bar:
    """One row: bytes of each of `PARTS`, means over its runs."""

    label: str
    parts: Sequence[float]


@style.styled
def draw(bars: Sequence[Bar], title: str) -> Figure:
    """Draws a bar for each row, with its total at the end."""
    figure = Figure(figsize=(style.WIDTH, 1.1 + 0.24 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(visible=False, axis="y")
    positions = range(len(bars))
    starts = [0.0] * len(bars)
    handles = []
    for number, colour in enumerate(_COLOURS):
        lengths = [bar.parts[number] / 2**20 for bar in bars]
        handles.append(
            axes.barh(
                positions,
                lengths,
                left=starts,
                height=0.7,
                color=colour,
                hatch=style.HATCHES[number],
                edgecolor="#222222",
                linewidth=0.5,
            )
        )
        starts = [start + length for start, length in zip(starts, lengths, strict=True)]
    for position, total in zip(positions, starts, strict=True):
        axes.text(total, position, f" {numbers.human(total)}", va="center", fontsize=7, label="_total")
    axes.set_yticks(list(positions), [bar.label for bar in bars])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08 * max(starts))
    axes.set_xlabel("MiB")
    axes.set_title(title)
    names = ["weights and buffers", "gradients", "optimizer state", "saved activations"]
    style.legend(figure, handles, names, "")
    return figure


def _pictures(study: Study) -> Iterator[Picture | LeftOut]:
    for column, groups in study.tasks():
        bars: dict[str, Bar] = {}
        drawn: list[Group] = []
        for group in groups:
            bar = _bar(group)
            if isinstance(bar, LeftOut):
                yield bar
            else:
                bars[group.row.label] = bar
                drawn.append(group)
        for ending, page in pages(drawn, MOST):
            caption = (
                f"Training memory on {column.task}, means over the runs of a row. Weights, gradients and optimizer "
                "state are sums over storages, activations what is saved for backward in the largest batch; each is "
                "the largest over the steps. The numbers are totals in MiB; an allocator's or a process's peaks are "
                "higher."
            )
            draws = partial(draw, [bars[group.row.label] for group in page], f"{page[0].task}: training memory")
            yield Picture(file_name("memory", column.task, ending), caption, draws)


def _bar(group: Group) -> Bar | LeftOut:
    memories = [run.record.memory for run in group.runs]
    missing = [part for part in PARTS if any(getattr(memory, part) is None for memory in memories)]
    if missing:
        return LeftOut(group.title, f"not recorded in all of its runs: {', '.join(missing)}")
    return Bar(group.label, [statistics.fmean(getattr(memory, part) for memory in memories) for part in PARTS])


KINDS = (Kind("memory", "weights, gradients, optimizer state and activations, stacked", _pictures),)
