"""Names of points in a plot that never overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

HEIGHT = 0.155  # inches from one label to the next
_LETTER = 0.062  # inches of a letter, at most


@dataclass(frozen=True)
class Label:
    """The name of the point at (x, y), in data coordinates."""

    text: str
    x: float
    y: float
    colour: str


def name_points(axes: Axes, labels: Sequence[Label], size: tuple[float, float]) -> None:
    """Writes each label right beside its point where nothing is in the way, the others in a column at the right.

    size: (width, height) of the axes in inches. Nothing may be plotted later.
    """
    axes.autoscale_view()  # matplotlib would do it when it draws
    data = [(label.x, label.y) for label in labels]
    places = axes.transAxes.inverted().transform(axes.transData.transform(data))
    inches = places * size
    far: list[int] = []
    for k, (label, (x, y)) in enumerate(zip(labels, inches, strict=True)):
        width = 0.12 + _LETTER * len(label.text)
        others = np.delete(inches, k, axis=0) - (x, y)
        # A neighbour's own label may begin at its mark, so it must not stand on the same line at all to the left.
        near = (np.abs(others[:, 1]) < HEIGHT) & (others[:, 0] > -width - 0.2) & (others[:, 0] < width + 0.1)
        if near.any() or x + width > size[0]:
            far.append(k)
            continue
        axes.annotate(label.text, (label.x, label.y), (4, 2), textcoords="offset points", va="bottom", **_look(label))
    found = spread(places[far, 1], min(HEIGHT / size[1], 1 / max(len(far), 1)))
    for k, place in zip(far, found, strict=True):
        axes.annotate(
            labels[k].text,
            xy=(labels[k].x, labels[k].y),
            xytext=(1.04, float(place)),
            textcoords="axes fraction",
            va="center",
            arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "linewidth": 0.5, "shrinkB": 3, "relpos": (0, 0.5)},
            annotation_clip=False,
            **_look(labels[k]),
        )


def _look(label: Label) -> dict[str, Any]:
    return {"fontsize": 6.5, "color": label.colour, "label": "_name"}


def spread(wanted: Sequence[float] | np.ndarray, gap: float) -> np.ndarray:
    """Places in [0, 1] at least `gap` apart, in the order of `wanted` and as near to it as can be (least squares).

    There must be room: (n − 1) · gap ≤ 1.
    """
    wanted = np.asarray(wanted, dtype=np.float64)
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(wanted))
    # With y_k = x_k − k·gap the distances become an order, so pooling neighbours that are out of order solves it.
    pools: list[list[float]] = []  # [mean, number]
    for value in wanted[order] - steps:
        pools.append([float(value), 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            mean, number = pools.pop()
            before = pools[-1]
            before[0] = (before[0] * before[1] + mean * number) / (before[1] + number)
            before[1] += number
    level = np.repeat([mean for mean, _ in pools], [int(number) for _, number in pools])
    places = np.empty(len(wanted))
    places[order] = np.clip(level, 0.0, 1.0 - (steps[-1] if len(steps) else 0.0)) + steps
    return places
