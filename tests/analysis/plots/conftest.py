"""Runs with all that figures look at: journals, adapters, evaluations at lower ranks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis.plots import catalogue
from analysis.plots.kind import LeftOut, Picture, Study
from analysis.records import runs

LAYERS = [
    f"bert.encoder.layer.{block}.{module}" for block in range(3) for module in ("attention.query", "output.dense")
]
SIZE = (6, 5)  # of each of them


def lines(folder: Path, name: str, entries: Iterable[Mapping[str, Any]]) -> None:
    """Writes a journal."""
    (folder / name).write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def log(folder: Path, accuracy: Mapping[int, float], loss: Mapping[int, float]) -> None:
    """A `metrics.jsonl` with an evaluation and a training loss at the given steps."""
    entries = [{"step": step, "eval/accuracy": value} for step, value in accuracy.items()]
    entries += [{"step": step, "train/task_loss": value} for step, value in loss.items()]
    lines(folder, "metrics.jsonl", sorted(entries, key=lambda entry: entry["step"]))


def allocate(folder: Path, *allocations: tuple[int, Sequence[int]]) -> None:
    """A `ranks.jsonl`: (step, ranks in the order of LAYERS)."""
    entries = [{"step": step, "ranks": dict(zip(LAYERS, ranks, strict=True))} for step, ranks in allocations]
    lines(folder, "ranks.jsonl", entries)


def save(folder: Path, parameters: Mapping[str, np.ndarray], variant: Mapping[str, Any] | None = None) -> None:
    """An `adapter/` with these parameters of LAYERS and this state."""
    import torch

    from variants.core import state_files

    def tensors(tree: Any) -> Any:
        if isinstance(tree, Mapping):
            return {name: tensors(entry) for name, entry in tree.items()}
        return torch.from_numpy(tree) if isinstance(tree, np.ndarray) else tree

    tree = {"parameters": parameters, "variant": variant or {}, "layers": {name: list(SIZE) for name in LAYERS}}
    state_files.save(tensors(tree), folder / "adapter" / "state")


def save_factors(folder: Path, seed: int, rank: int = 2) -> None:
    """An adapter with random A and B in every layer."""
    draw = np.random.default_rng(seed)
    parameters = {}
    for name in LAYERS:
        parameters[f"{name}.A"] = draw.normal(size=(rank, SIZE[1]))
        parameters[f"{name}.B"] = draw.normal(size=(SIZE[0], rank))
    save(folder, parameters)


def save_entries(folder: Path, places: Mapping[str, Sequence[int]]) -> None:
    """A sparse adapter with ones at these places of each layer."""
    indices = {name: np.array(found, dtype=np.int64) for name, found in places.items()}
    save(folder, {f"{name}.values": np.ones(len(found)) for name, found in places.items()}, {"indices": indices})


def drawn_in_every_way(store: Any, **options: Any) -> None:
    """Two seeds of two methods, of which figures of every kind can be drawn."""
    for seed in (0, 1):
        for variant, end in (("adalora", [1, 2, 3, 4, 0, 8]), ("shira", [5] * 6)):
            folder = store.add(variant, seed, 0.7 + seed / 10, **options)
            log(folder, {5: 0.5, 10: 0.7}, {5: 0.7, 10: 0.4})
            allocate(folder, (0, [5] * 6), (8, end))
            if variant == "adalora":
                save_factors(folder, seed)
            else:
                save_entries(folder, {name: [seed, 7] for name in LAYERS})


Drawn = tuple[list[Picture], list[LeftOut]]


@pytest.fixture
def draw(store) -> Callable[..., Drawn]:
    """The pictures of some kinds from the runs so far, and what is left out."""

    def drawn(*kinds: str, pair: tuple[Path, Path] | None = None) -> Drawn:
        two = None if pair is None else tuple(runs.read([folder]).done[0] for folder in pair)
        items = [item for _, item in catalogue.pictures(Study(runs.read([Path("runs")]), two), kinds)]
        return [i for i in items if isinstance(i, Picture)], [i for i in items if isinstance(i, LeftOut)]

    return drawn


def only(drawn: Drawn) -> tuple[Picture, Figure]:
    """The one picture there is, and its figure; nothing is left out."""
    (picture,), left_out = drawn
    assert not left_out
    return picture, picture.draw()


def marked(figure: Figure, label: str) -> list[Any]:
    """The artists in a figure's axes that are marked so: point, curve, band, cell, total, front."""
    return [found for axes in figure.axes for found in axes.findobj(lambda artist: artist.get_label() == f"_{label}")]


def legend(figure: Figure) -> tuple[str, list[str]]:
    """The title and the labels of a figure's legend."""
    (found,) = figure.legends
    return found.get_title().get_text(), [text.get_text() for text in found.get_texts()]


def cells(figure: Figure) -> list[str]:
    """The numbers in the cells of all maps, line by line."""
    return [text.get_text() for text in marked(figure, "cell")]
