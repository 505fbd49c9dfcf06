"""An image of the ranks of all layers over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def rank_map(lines: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Pixels (height, width, 3) uint8. lines: of ranks.jsonl; a column is an allocation, a row a layer."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers = list(lines[-1]["ranks"])
    steps = [line["step"] for line in lines]
    ranks = np.array([[line["ranks"].get(layer, 0) for line in lines] for layer in layers])
    figure = Figure(figsize=(8, max(2.0, 0.16 * len(layers) + 1.2)), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(ranks, aspect="auto", interpolation="nearest", cmap="viridis", vmin=0)
    shown = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 12)).astype(int))
    axes.set_xticks(shown, [str(steps[index]) for index in shown])
    axes.set_yticks(range(len(layers)), layers, fontsize=6)
    axes.set_xlabel("step of the allocation")
    figure.colorbar(image, label="rank")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
