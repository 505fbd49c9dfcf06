"""What is drawn of the update itself: spectra, subspaces, sparsity patterns."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.plots.sparsity import shares
from analysis.records.adapter_file import Pattern
from tests.analysis.plots.conftest import LAYERS, SIZE, cells, marked, only, save, save_entries, save_factors


def diagonal(values) -> dict[str, np.ndarray]:
    """Factors whose product has these singular values, the same in all layers."""
    values = np.array(values, dtype=float)
    a, b = np.eye(len(values), SIZE[1]), np.eye(SIZE[0], len(values)) * values
    return {f"{name}.{part}": factor for name in LAYERS for part, factor in (("A", a), ("B", b))}


def everywhere(*places: int) -> dict[str, list[int]]:
    """The same places in every layer."""
    return {name: list(places) for name in LAYERS}


def test_a_spectrum_is_relative_to_its_largest_value(store, draw):
    save(store.add("lora", 0), diagonal([4, 2, 1]))
    picture, figure = only(draw("delta-spectrum"))
    curves = marked(figure, "curve")
    assert len(curves) == len(LAYERS)
    assert curves[0].get_xdata().tolist() == [1, 2, 3]
    assert curves[0].get_ydata() == pytest.approx([1, 0.5, 0.25])
    assert {axes.get_ylabel() for axes in figure.axes} >= {"σᵢ / σ₁"}
    assert picture.name == "delta-spectrum.movie.lora"
    assert "each over the largest of its layer: the factor in front of ΔW is not saved" in picture.caption


def test_the_map_below_has_effective_ranks(store, draw):
    save(store.add("lora", 0), diagonal([2, 1, 1]))
    _, figure = only(draw("delta-spectrum"))
    assert cells(figure) == ["2.83"] * len(LAYERS)
    titles = [axes.get_title() for axes in figure.axes]
    assert "query\neffective rank 2.83" in titles


def test_of_several_seeds_spectra_are_averaged_and_missing_directions_are_zeros(store, draw):
    save(store.add("adalora", 0), diagonal([4, 2]))
    save(store.add("adalora", 1), diagonal([4]))
    picture, figure = only(draw("delta-spectrum"))
    assert marked(figure, "curve")[0].get_ydata() == pytest.approx([1, 0.25])
    assert "mean of 2 seeds" in picture.caption


def test_an_update_that_can_not_be_told_is_left_out_with_the_reason(store, draw):
    save(store.add("lora_xs", 0), {f"{name}.R": np.eye(2) for name in LAYERS})
    pictures, (left_out,) = draw("delta-spectrum")
    assert not pictures
    assert left_out.what == "lora_xs on movie"
    assert left_out.reason == "saved of a layer is R: its ΔW can't be computed without the base model"


def test_an_update_of_zero_is_left_out(store, draw):
    save(store.add("lora", 0), diagonal([0, 0]))
    pictures, (left_out,) = draw("delta-spectrum")
    assert not pictures
    assert left_out.reason == "ΔW is zero in every layer"


def test_two_seeds_with_one_subspace_are_wholly_similar(store, draw):
    for seed in (0, 1):
        save_factors(store.add("lora", seed), seed=7)
    picture, figure = only(draw("subspace-similarity"))
    assert cells(figure) == ["1.00"] * len(LAYERS)
    assert picture.name == "subspace-similarity.movie.lora"
    assert "lora on movie, seeds 0 and 1" in picture.caption
    assert "random subspaces would have 0.400 there" in picture.caption  # 2 of 5 directions
    panels = [axes for axes in figure.axes if axes.get_title() in ("query", "dense")]
    assert {axes.get_xlabel() for axes in panels} == {"j"}
    assert [axes.collections[0].get_array().shape for axes in panels] == [(2, 2)] * 2


def test_two_given_runs_are_compared_whatever_their_methods(store, draw):
    one, two = store.add("lora", 0), store.add("adalora", 0, task="opinion")
    e = np.array([3.0, 1.0])
    save(one, diagonal([2, 1]))
    save(two, {**diagonal([1, 1]), **{f"{name}.e": e for name in LAYERS}})
    (picture,), left_out = draw("subspace-similarity", pair=(one, two))
    assert not left_out
    assert picture.name == f"subspace-similarity.{one.name}.{two.name}"
    assert f"lora on movie, seed 0 ({one.name}) and adalora on opinion, seed 0 ({two.name})" in picture.caption
    assert cells(picture.draw()) == ["1.00"] * len(LAYERS)


def test_the_rows_of_a_count_as_much_as_their_e_says(store, draw):
    one, two = store.add("adalora", 0), store.add("adalora", 1)
    for folder, e in ((one, [3.0, 1.0]), (two, [1.0, 3.0])):
        save(folder, {**diagonal([1, 1]), **{f"{name}.e": np.array(e) for name in LAYERS}})
    (picture,), _ = draw("subspace-similarity")
    panel = next(axes for axes in picture.draw().axes if axes.get_title() == "query")
    # The strongest direction of one is the weakest of the other.
    np.testing.assert_allclose(panel.collections[0].get_array(), [[0, 1], [1, 1]], atol=1e-12)


def test_one_seed_has_nothing_to_be_compared_with(store, draw):
    save_factors(store.add("lora", 0), seed=0)
    pictures, (left_out,) = draw("subspace-similarity")
    assert not pictures
    assert left_out.reason == "one seed: two are needed to compare (or two runs, with --pair)"


def test_a_pattern_shows_the_middle_block_and_the_shares_of_all_layers(store, draw):
    save_entries(store.add("shira", 0), {name: [0, 1, 2 + number] for number, name in enumerate(LAYERS)})
    picture, figure = only(draw("sparsity-pattern"))
    assert cells(figure) == ["10.0"] * len(LAYERS)
    titles = [axes.get_title() for axes in figure.axes]
    assert "query\n6×5, 10.0 %" in titles
    panel = next(axes for axes in figure.axes if axes.get_title().startswith("query"))
    entries = np.argwhere(panel.collections[0].get_array() > 0).tolist()
    assert entries == [[0, 0], [0, 1], [0, 4]]  # of block 1, whose third entry is 4
    assert "18 of 180 (10.0 %)" in picture.caption and "matrices of block 1" in picture.caption
    assert picture.name == "sparsity-pattern.movie.shira"


def test_a_large_pattern_is_seen_from_afar():
    # The upper left quarter of a 100×200 matrix.
    places = np.array([row * 200 + column for row in range(50) for column in range(100)])
    found = shares(Pattern(places, (100, 200)), bins=4)
    assert found.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_a_pattern_of_factors_has_a_row_for_each_factor(store, draw):
    places = {"A": np.array([0, 4]), "B": np.array([1])}
    shapes = {"A": [2, SIZE[1]], "B": [SIZE[0], 2]}
    parameters = {f"{name}.{part}": np.ones(len(found)) for name in LAYERS for part, found in places.items()}
    state = {"places": dict.fromkeys(LAYERS, places), "shapes": dict.fromkeys(LAYERS, shapes)}
    save(store.add("sparse", 0), parameters, state)
    _, figure = only(draw("sparsity-pattern"))
    assert {"query.A\n2×5, 20.0 %", "query.B\n6×2, 8.33 %"} <= {axes.get_title() for axes in figure.axes}


def test_overlap_between_seeds_is_the_jaccard_index(store, draw):
    # Seeds 0 and 1 share one of three places, seed 2 is seed 0.
    for seed, places in enumerate(([0, 1], [1, 2], [0, 1])):
        save_entries(store.add("shira", seed), everywhere(*places))
    picture, figure = only(draw("sparsity-overlap"))
    shown = cells(figure)
    assert shown[:9] == ["1.00", "0.33", "1.00", "0.33", "1.00", "0.33", "1.00", "0.33", "1.00"]
    assert shown[9:] == ["0.56"] * len(LAYERS)  # (1/3 + 1 + 1/3) / 3
    assert "for every two of 3 seeds (mean 0.556)" in picture.caption
    assert "patterns drawn independently would have about 0.034" in picture.caption  # 2 and 2 of 30 places
    assert "All seeds have one pattern" not in picture.caption


def test_seeds_with_one_pattern_are_said_to_have_it(store, draw):
    for seed in (0, 1):
        save_entries(store.add("shira", seed), everywhere(3, 4))
    picture, _ = only(draw("sparsity-overlap"))
    assert picture.caption.endswith("All seeds have one pattern: what chooses it does not depend on the seed.")


def test_one_seed_has_no_overlap_and_a_dense_update_no_pattern(store, draw):
    save_entries(store.add("shira", 0), everywhere(3, 4))
    save_factors(store.add("lora", 0), seed=0)
    pictures, left_out = draw("sparsity-overlap", "sparsity-pattern")
    assert [picture.name for picture in pictures] == ["sparsity-pattern.movie.shira"]
    assert sorted((item.what, item.reason) for item in left_out) == [
        ("lora on movie", "the update is not sparse"),
        ("lora on movie", "the update is not sparse"),
        ("shira on movie", "one seed: an overlap needs two"),
    ]
