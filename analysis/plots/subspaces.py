"""The similarity of two runs' subspaces by layer, with the Grassmann measure of the LoRA paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from analysis.plots import by_module, style
from analysis.plots.kind import Kind, LeftOut, Picture, Study, Unusable, file_name
from analysis.records.adapter_file import Saved
from analysis.records.runs import Run
from analysis.stats.matrices import subspace_similarity
from analysis.text.layer_grid import Layout, layout

_TOPS = (0.05, 0.1, 0.2, 0.5)  # upper ends of the colour scale


@dataclass(frozen=True)
class Pair:
    """Two runs: φ (r, r') of every layer in which both have directions."""

    phi: Mapping[str, np.ndarray]
    chance: tuple[float, float]  # of random subspaces: smallest and largest over layers
    others: Sequence[str]  # layers without directions in one of the runs

    @property
    def chance_text(self) -> str:
        return " to ".join(dict.fromkeys(f"{value:.3f}" for value in self.chance))


@style.styled
def draw(grid: Layout, phi: Mapping[str, np.ndarray], title: str, chance: str) -> Figure:
    """Panels: φ(i, j), means over blocks with so many directions. Map: φ(r, r') of the whole subspaces."""
    figure, above, panels, below = by_module.build(grid, title, 1.75)
    whole = {name: float(values[-1, -1]) for name, values in phi.items()}
    means = [_mean([phi[name] for name in phi if grid.position[name][0] == number]) for number in range(len(panels))]
    largest = max(*(float(mean.max()) for mean in means), *whole.values())
    # Two seeds often share little, which a scale up to 1 would hide.
    top = next((top for top in _TOPS if largest <= top), 1.0)
    for number, (axes, mean) in enumerate(zip(panels, means, strict=True)):
        rows, columns = mean.shape
        axes.grid(False)
        mesh = axes.pcolormesh(
            np.arange(0.5, columns + 1), np.arange(0.5, rows + 1), mean, cmap=style.SEQUENTIAL, vmin=0, vmax=top
        )
        axes.set_title(style.name(grid.modules[number], 30))
        style.whole_ticks(axes)
    by_module.name_axes(panels, "j", "i")
    above.colorbar(mesh, ax=panels, label=f"φ(i, j), from 0 to {top:g}", pad=0.02, fraction=0.04)
    label = f"φ of all directions\n(chance: {chance})"
    by_module.add_map(below, grid, whole, lambda value: f"{value:.2f}", label, (0.0, top))
    return figure


def _mean(found: Sequence[np.ndarray]) -> np.ma.MaskedArray:
    """The mean of matrices of different sizes: each entry over the matrices that have it."""
    rows, columns = (max(values.shape[side] for values in found) for side in (0, 1))
    together = np.ma.masked_all((len(found), rows, columns))
    for place, values in enumerate(found):
        together[place, : values.shape[0], : values.shape[1]] = values
    return together.mean(axis=0)


def compare(one: Run, two: Run) -> Pair:
    """φ of two runs. Raises `Unusable` if no layer has factors A in both."""
    first, second = _directions(one), _directions(two)
    common = [name for name in first if name in second and first[name].shape[1] == second[name].shape[1]]
    phi: dict[str, np.ndarray] = {}
    chances: list[float] = []
    for name in common:
        found = subspace_similarity(first[name], second[name])
        if found.size:
            phi[name] = found
            # E‖V_A[:, :i]ᵀ V_B[:, :j]‖² = i j / in for random subspaces.
            chances.append(max(found.shape) / first[name].shape[1])
    if not phi:
        raise Unusable("the two runs have no layer in common with directions in both")
    others = [name for name in {**first, **second} if name not in phi]
    return Pair(phi, (min(chances), max(chances)), others)


def _directions(run: Run) -> dict[str, np.ndarray]:
    """A of every layer, with each row scaled by its e, so that important directions come first."""
    saved = Saved(run.folder, run.record.files)
    found: dict[str, np.ndarray] = {}
    for name in saved.layers:
        factors = saved.factors(name)
        found[name] = factors.A if factors.e is None else factors.A * factors.e[:, None]
    return found


def _pictures(study: Study) -> Iterator[Picture | LeftOut]:
    if study.pair is not None:
        one, two = study.pair
        names = (_name(one), _name(two))
        yield _picture(one, two, f"{names[0]} and {names[1]}", (one.record.run_id, two.record.run_id))
        return
    for _, groups in study.tasks():
        for group in groups:
            if len(group.runs) < 2:
                yield LeftOut(group.title, "one seed: two are needed to compare (or two runs, with --pair)")
                continue
            one, two = group.runs[:2]
            title = f"{group.title}, seeds {one.record.seed} and {two.record.seed}"
            yield _picture(one, two, title, (group.column.task, group.row.label))


def _picture(one: Run, two: Run, title: str, name: tuple[str, str]) -> Picture | LeftOut:
    try:
        pair = compare(one, two)
    except Unusable as error:
        return LeftOut(title, str(error))
    caption = (
        f"Subspace similarity of {title}: φ(i, j) = ‖V_iᵀ V'_j‖² / min(i, j) of the first i and j right singular "
        "vectors of A (rows times e where there is one), from 0 (orthogonal) to 1 (one contains the other); Hu et al. "
        "2022, section 7.2. Panels: i of the first run from bottom to top, j of the second from left to right, means "
        "over the blocks that have so many directions. Map: all directions; random subspaces would have "
        f"{pair.chance_text} there. The colours' scale ends where it must."
    )
    if pair.others:
        caption += f" Left out: {len(pair.others)} layers without directions in both."
    grid = layout(pair.phi, pair.others)
    draws = partial(draw, grid, pair.phi, style.name(f"subspace similarity: {title}", 110), pair.chance_text)
    return Picture(file_name("subspace-similarity", *name), caption, draws)


def _name(run: Run) -> str:
    record = run.record
    return f"{record.variant} on {record.task}, seed {record.seed} ({record.run_id})"


KINDS = (Kind("subspace-similarity", "Grassmann measure between two runs, by layer", _pictures),)
