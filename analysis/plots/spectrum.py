"""The singular values of ΔW by layer, and their effective rank."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from analysis.plots import by_module, style
from analysis.plots.kind import Group, Kind, LeftOut, Picture, Study, Unusable, read
from analysis.records.adapter_file import Saved
from analysis.records.runs import Run
from analysis.stats.matrices import effective_rank
from analysis.text.layer_grid import Layout, layout

_NOISE = 1e-6  # relative to the largest singular value; smaller ones are float32 noise


@style.styled
def draw(
    grid: Layout, spectra: Mapping[str, np.ndarray], effective: Mapping[str, float], title: str, of: str
) -> Figure:
    """spectra: σᵢ/σ₁ of every layer. effective: effective ranks of the same layers. of: ΔW or W."""
    figure, above, panels, below = by_module.build(grid, title, 1.5, shared=True)
    shown = {name: values[values > _NOISE] for name, values in spectra.items()}
    by_module.lines_by_block(above, panels, grid, shown, "i", "σᵢ / σ₁")
    ranks: dict[int, list[float]] = defaultdict(list)
    for name, value in effective.items():
        ranks[grid.position[name][0]].append(value)
    for number, axes in enumerate(panels):
        axes.set_yscale("log")
        style.power_axis(axes)
        label = style.name(grid.modules[number], 30)
        axes.set_title(f"{label}\neffective rank {by_module.span(ranks[number])}", fontsize=7)
    by_module.add_map(below, grid, effective, style.digits, f"effective rank of {of}")
    return figure


def _pictures(study: Study) -> Iterator[Picture | LeftOut]:
    for _, groups in study.tasks():
        for group in groups:
            runs, left_out = read(group, spectra)
            yield from left_out
            if runs:
                yield _picture(group, [found for _, found in runs])


def spectra(run: Run) -> dict[str, np.ndarray]:
    """Singular values of ΔW by layer, descending, each layer up to a factor. Raises `Unusable`."""
    saved = Saved(run.folder, run.record.files)
    found = {name: saved.singular_values(name) for name in saved.layers}
    if not any(values.any() for values in found.values()):
        raise Unusable("ΔW is zero in every layer")
    return found


def _picture(group: Group, runs: Sequence[Mapping[str, np.ndarray]]) -> Picture | LeftOut:
    names = list(runs[0])
    if any(found.keys() != runs[0].keys() for found in runs):
        return LeftOut(group.title, "its seeds adapted different layers")
    effective = {name: float(np.mean([effective_rank(found[name]) for found in runs])) for name in names}
    mean = {name: _mean([_relative(found[name]) for found in runs]) for name in names}
    count = f"mean of {len(runs)} seeds" if len(runs) > 1 else "one seed"
    zero = [name for name in names if not mean[name].any()]
    sometimes = [name for name in names if name not in zero and not all(found[name].any() for found in runs)]
    caption = (
        f"Singular values of ΔW of {group.title}, {count}, each over the largest of its layer: the factor in front of "
        "ΔW is not saved, and divides out. Effective rank: the exponential of the entropy of σ/Σσ (Roy and "
        f"Vetterli 2007), the number of directions if all were equal; over layers it is "
        f"{by_module.span(effective.values())}."
    )
    if zero:
        caption += f" ΔW is zero in {len(zero)} of {len(names)} layers."
    if sometimes:
        caption += f" In {len(sometimes)} it is zero in some seeds, which count in the effective rank alone."
    if len(layout(names).modules) > by_module.MOST:
        caption += f" Spectra are shown of the first {by_module.MOST} kinds of modules."
    title = f"{group.label}, {group.task}: spectrum of ΔW, {count}"
    return Picture(group.file("delta-spectrum"), caption, partial(draw, layout(names), mean, effective, title, "ΔW"))


def _relative(values: np.ndarray) -> np.ndarray:
    return values / values[0] if len(values) and values[0] > 0 else values


def _mean(runs: Sequence[np.ndarray]) -> np.ndarray:
    """The mean over runs in which ΔW is not zero; missing singular values count as zero."""
    longest = max(map(len, runs))
    padded = [np.pad(values, (0, longest - len(values))) for values in runs]
    return np.mean([values for values in padded if values.any()] or padded, axis=0)


KINDS = (Kind("delta-spectrum", "singular values and effective rank of ΔW by layer", _pictures),)
