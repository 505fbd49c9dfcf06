"""Ranks during training: their sum over steps for all rows, and layer by layer for each row."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from analysis.plots import style
from analysis.plots.kind import Group, Kind, LeftOut, Picture, Study, file_name, pages, read, seeds
from analysis.records import run_files
from analysis.records.run_files import Ranks, Unusable
from analysis.records.runs import Run

MOST = 8  # rows in one picture
_FAR = 20  # ratio of sums of ranks above which the axis is logarithmic
_MOST_NAMES = 48  # layers with names beside a map


@dataclass(frozen=True)
class History:
    """Ranks of n runs of one row, step by step of those at which any of them changed.

    steps: (s,), rising, from 0. totals: (n, s). layers: names. means: (layers, s), over the runs.
    end: the last step of the longest run.
    """

    label: str
    look: style.Look
    steps: np.ndarray
    totals: np.ndarray
    layers: Sequence[str]
    means: np.ndarray
    end: int

    @property
    def n(self) -> int:
        return len(self.totals)


@style.styled
def draw_totals(histories: Sequence[History], y: str) -> Figure:
    """Draws the sum over layers as steps, with a band of ± sd for several runs."""
    figure = Figure(figsize=(style.WIDTH * 0.72, 3.2), layout="constrained")
    axes = figure.add_subplot()
    handles = []
    for history in histories:
        steps, totals = _held(history.steps, history.end), _repeated(history.totals)
        mean, look = totals.mean(0), history.look
        (line,) = axes.plot(
            steps,
            mean,
            linestyle=look.line,
            color=look.colour,
            drawstyle="steps-post",
            marker=look.marker,
            markevery=max(1, len(steps) // 8),
            label="_curve",
        )
        if history.n > 1:
            sd = totals.std(0, ddof=1)
            axes.fill_between(
                steps, mean - sd, mean + sd, step="post", color=look.colour, alpha=0.12, linewidth=0, label="_band"
            )
        handles.append(line)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(y)
    largest = [float(history.totals.max()) for history in histories]
    if max(largest) > _FAR * min(largest):
        axes.set_yscale(
            "symlog", linthresh=min(largest)
        )  # linear up to the smallest, which would be on the axis otherwise
    axes.set_ylim(0, 1.06 * max(largest))
    title = seeds((history.n for history in histories), "line and band: mean ± sd over seeds")
    style.legend(figure, handles, [history.label for history in histories], title)
    return figure


@style.styled
def draw_layers(history: History, title: str) -> Figure:
    """Draws a map of layers over steps, dark to light by rank."""
    count = len(history.layers)
    figure = Figure(figsize=(style.WIDTH, 1.0 + max(1.5, min(7.5, 0.145 * count))), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(False)
    edges = _held(history.steps, history.end)
    mesh = axes.pcolormesh(edges, np.arange(count + 1), history.means, cmap=style.SEQUENTIAL)
    axes.invert_yaxis()
    step = 1 + (count - 1) // _MOST_NAMES
    names = [style.name(name, 40) for name in _without_common_start(history.layers)]
    axes.set_yticks(np.arange(0, count, step) + 0.5, names[::step], fontsize=6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("optimizer step")
    axes.set_title(title)
    figure.colorbar(mesh, ax=axes, label="rank", pad=0.02)
    return figure


def _held(steps: np.ndarray, end: int) -> np.ndarray:
    """`steps` and the end of the last one, with some width for changes in the last step."""
    return np.append(steps, max(end, steps[-1] + max(1, round(0.02 * end))))


def _repeated(totals: np.ndarray) -> np.ndarray:
    return np.concatenate([totals, totals[:, -1:]], axis=1)


def _without_common_start(names: Sequence[str]) -> list[str]:
    """Names without their common dotted prefix."""
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(p) > shared + 1 and p[shared] == parts[0][shared] for p in parts) and len(names) > 1:
        shared += 1
    return [".".join(p[shared:]) for p in parts]


def _totals(study: Study) -> Iterator[Picture | LeftOut]:
    for column, groups in study.tasks():
        found: dict[str, History] = {}
        drawn: list[Group] = []
        constant: dict[str, str] = {}
        for group in groups:
            history, left_out = _history(group)
            yield from left_out
            if history is None:
                continue
            if np.ptp(history.totals) == 0:
                constant[group.row.label] = f"{history.totals.flat[0]:g}"
                continue
            found[group.row.label] = history
            drawn.append(group)
        others = ", ".join(f"{label} ({total})" for label, total in constant.items())
        if constant and not drawn:
            yield LeftOut(column.task, f"no row's sum of ranks changes in training: {others}")
        for ending, page in pages(drawn, MOST):
            histories = [found[group.row.label] for group in page]
            caption = (
                f"Ranks of all adapted layers together over the training on {column.task}: "
                f"{seeds(history.n for history in histories)}. What happens to the model that is handed over stands "
                "at the end." + (f" Constant, and not drawn: {others}." if others else "")
            )
            draws = partial(draw_totals, histories, f"{page[0].task}: sum of ranks")
            yield Picture(file_name("rank-total", column.task, ending), caption, draws)


def _layers(study: Study) -> Iterator[Picture | LeftOut]:
    for _, groups in study.tasks():
        for group in groups:
            history, left_out = _history(group)
            yield from left_out
            if history is None:
                continue
            if np.ptp(history.means) == 0:
                rank = f"{history.means.flat[0]:g}"
                yield LeftOut(group.title, f"every layer has rank {rank} from the first step to the last")
                continue
            count = f"mean of {history.n} seeds" if history.n > 1 else "one seed"
            caption = f"Rank of every layer over the training of {group.title}: {count}; a layer a line."
            title = f"{group.label}, {group.task}: ranks in training, {count}"
            yield Picture(group.file("rank-over-time"), caption, partial(draw_layers, history, title))


def _history(group: Group) -> tuple[History | None, list[LeftOut]]:
    """The history of a group, None if there is none, and the runs that are not in it."""
    runs, left_out = read(group, _read)
    if not runs:
        return None, left_out
    layers = list(runs[0][1][0].ranks)
    if any(found[0].ranks.keys() != set(layers) for _, found in runs):
        return None, [*left_out, LeftOut(group.title, "its seeds adapted different layers")]
    steps = sorted({entry.step for _, found in runs for entry in found})
    # (runs, steps, layers): the ranks after each step.
    held = np.array([[list(map(_at(found, step).get, layers)) for step in steps] for _, found in runs], dtype=float)
    end = max(run.record.steps.done or found[-1].step for run, found in runs)
    means = held.mean(0).T
    return History(group.label, group.look, np.array(steps), held.sum(2), layers, means, end), left_out


def _read(run: Run) -> list[Ranks]:
    """The run's allocations from the start. Raises `Unusable` where earlier ones are not there, as after `keep`."""
    found = run_files.ranks(run.folder)
    if found[0].step > 0:
        raise Unusable(f"ranks.jsonl begins at step {found[0].step}: the ranks before are not known")
    return found


def _at(found: Sequence[Ranks], step: int) -> dict[str, int]:
    """The ranks after `step`."""
    return found[bisect.bisect_right(found, step, key=lambda entry: entry.step) - 1].ranks


KINDS = (
    Kind("rank-total", "the sum of all ranks over steps", _totals),
    Kind("rank-over-time", "the rank of every layer over steps", _layers),
)
