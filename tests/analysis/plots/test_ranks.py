"""The rank map, and ranks over time."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analysis.plots.conftest import LAYERS, allocate, cells, legend, marked, only


def test_the_map_has_modules_as_rows_blocks_as_columns_and_mean_ranks_in_its_cells(store, draw):
    allocate(store.add("adalora", 0), (0, [4] * 6), (9, [1, 2, 3, 4, 0, 8]))
    allocate(store.add("adalora", 1), (0, [4] * 6), (9, [2, 2, 3, 4, 0, 8]))
    picture, figure = only(draw("rank-map"))
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["query", "dense"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "1", "2"]
    assert cells(figure) == ["1.5", "3", "0", "2", "4", "8"]
    assert axes.get_title() == "adalora, movie: final ranks, mean of 2 seeds"
    assert picture.name == "rank-map.movie.adalora"
    assert "All layers together have 18.5." in picture.caption
    assert f"an sd of up to 0.7 ({LAYERS[0]})" in picture.caption


def test_of_one_seed_the_map_has_its_ranks(store, draw):
    allocate(store.add("adalora", 0), (0, [4] * 6), (9, [1, 2, 3, 4, 0, 8]))
    picture, figure = only(draw("rank-map"))
    assert cells(figure) == ["1", "3", "0", "2", "4", "8"]
    assert "one seed" in picture.caption and "sd" not in picture.caption


def test_ranks_that_are_all_the_same_need_no_map(store, draw):
    allocate(store.add("lora", 0), (0, [8] * 6))
    store.add("full", 0)
    pictures, left_out = draw("rank-map")
    assert not pictures
    assert {(item.what, item.reason) for item in left_out} == {
        ("lora on movie", "every layer ends at one rank (8): no map is needed"),
        ("full on movie", "no ranks.jsonl"),
    }


def test_seeds_that_adapted_different_layers_are_not_averaged(store, draw):
    allocate(store.add("lora", 0), (0, [1, 2, 3, 4, 5, 6]))
    (store.add("lora", 1) / "ranks.jsonl").write_text('{"step": 0, "ranks": {"a": 1, "b": 2}}\n')
    pictures, left_out = draw("rank-map", "rank-total", "rank-over-time")
    assert not pictures
    assert {item.reason for item in left_out} == {"its seeds adapted different layers"}


def test_the_sum_of_ranks_goes_down_in_steps(store, draw):
    allocate(store.add("adalora", 0, steps__done=20), (0, [4] * 6), (5, [2] * 6), (10, [1] * 6))
    allocate(store.add("adalora", 1, steps__done=20), (0, [4] * 6), (10, [1] * 6))
    _, figure = only(draw("rank-total"))
    (curve,) = marked(figure, "curve")
    assert curve.get_drawstyle() == "steps-post"
    assert list(curve.get_xdata()) == [0, 5, 10, 20]
    assert list(curve.get_ydata()) == [24, 18, 6, 6]
    band = marked(figure, "band")[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(18 + 8.485, abs=1e-2)
    assert figure.axes[0].get_ylabel() == "movie: sum of ranks"
    assert legend(figure) == ("line and band: mean ± sd over seeds, n = 2", ["adalora"])


@pytest.mark.parametrize(("largest", "scale"), [(80, "linear"), (800, "symlog")])
def test_sums_far_apart_do_not_lie_on_one_line(store, draw, largest, scale):
    allocate(store.add("adalora", 0), (0, [4] * 6), (5, [2] * 6))
    allocate(store.add("svft", 0), (0, [largest] * 6), (5, [1] * 6))
    _, figure = only(draw("rank-total"))
    axes = figure.axes[0]
    assert axes.get_yscale() == scale and axes.get_ylim() == (0, pytest.approx(1.06 * 6 * largest))


def test_rows_that_stay_as_they_are_stand_in_the_caption(store, draw):
    allocate(store.add("adalora", 0), (0, [4] * 6), (5, [2] * 6))
    allocate(store.add("lora", 0), (0, [8] * 6))
    picture, figure = only(draw("rank-total"))
    assert legend(figure)[1] == ["adalora"]
    assert picture.caption.endswith("Constant, and not drawn: lora (48).")


def test_where_nothing_changes_there_is_no_picture(store, draw):
    allocate(store.add("lora", 0), (0, [8] * 6))
    pictures, left_out = draw("rank-total", "rank-over-time")
    assert not pictures
    assert [item.reason for item in left_out] == [
        "no row's sum of ranks changes in training: lora (48)",
        "every layer has rank 8 from the first step to the last",
    ]


def test_final_ranks_alone_are_no_history(store, draw):
    """As `keep` leaves them."""
    allocate(store.add("adalora", 0), (9, [8, 0, 1, 1, 1, 1]))
    pictures, left_out = draw("rank-total", "rank-over-time")
    assert not pictures
    assert {item.reason for item in left_out} == {"ranks.jsonl begins at step 9: the ranks before are not known"}


def test_ranks_over_time_have_a_line_for_each_layer(store, draw):
    allocate(store.add("adalora", 0, steps__done=20), (0, [4] * 6), (5, [2, 4, 4, 4, 4, 4]), (10, [0, 4, 4, 4, 4, 1]))
    picture, figure = only(draw("rank-over-time"))
    axes = figure.axes[0]
    (mesh,) = axes.collections
    assert mesh.get_array().shape == (6, 3)
    assert mesh.get_array()[0].tolist() == [4, 2, 0]
    assert np.unique(mesh.get_coordinates()[..., 0]).tolist() == [0, 5, 10, 20]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels[:2] == ["0.attention.query", "0.output.dense"]
    assert axes.get_xlabel() == "optimizer step"
    assert picture.name == "rank-over-time.movie.adalora"


def test_what_changes_at_the_very_end_can_be_seen(store, draw):
    allocate(store.add("sora", 0, steps__done=10), (0, [4] * 6), (10, [1] * 6))
    _, figure = only(draw("rank-over-time"))
    (mesh,) = figure.axes[0].collections
    assert np.unique(mesh.get_coordinates()[..., 0]).tolist() == [0, 10, 11]
