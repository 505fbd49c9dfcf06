"""The metric against costs: points, bars, names, and which rows no cheaper row beats."""

from __future__ import annotations

import itertools

import pytest

from tests.analysis.plots.conftest import legend, marked, only

KIND = "metric-parameters"


def add(store, variant, effective, values, **changes):
    for seed, value in enumerate(values):
        store.add(variant, seed, value, params__effective=effective, **changes)


def test_a_point_for_each_row_at_its_means(store, draw):
    add(store, "lora", 1000, [0.7, 0.8])
    add(store, "full", 90_000, [0.9, 0.9])
    picture, figure = only(draw(KIND))
    assert picture.name == "metric-parameters.movie"
    points = [(mark.get_xdata()[0], mark.get_ydata()[0]) for mark in marked(figure, "point")]
    assert sorted(points) == [pytest.approx((1000, 75)), pytest.approx((90_000, 90))]


def test_axes_say_what_they_are(store, draw):
    add(store, "lora", 1000, [0.7, 0.8])
    _, figure = only(draw(KIND))
    (axes,) = figure.axes
    assert axes.get_xlabel() == "effective parameters at the end (head left out)"
    assert axes.get_ylabel() == "movie: accuracy × 100, best on validation"


def test_marks_of_rows_that_no_cheaper_row_beats_are_filled_and_the_caption_names_them(store, draw):
    add(store, "lora", 1000, [0.70, 0.71, 0.72])
    add(store, "worse", 2000, [0.60, 0.61, 0.62])
    add(store, "perhaps", 3000, [0.66, 0.69, 0.72])
    add(store, "full", 90_000, [0.90, 0.91, 0.92])
    picture, figure = only(draw(KIND))
    filled = {m.get_xdata()[0]: m.get_markerfacecolor() != "white" for m in marked(figure, "point")}
    assert filled == {1000: True, 2000: False, 3000: True, 90_000: True}
    assert picture.caption.endswith("two standard errors of the difference; they are lora, perhaps, full.")


def test_budgets_that_are_met_to_one_rank_are_equal_costs(store, draw):
    add(store, "lora", 299_900, [0.60, 0.61, 0.62])
    add(store, "sora", 300_000, [0.80, 0.81, 0.82])
    _, figure = only(draw(KIND))
    filled = {m.get_xdata()[0]: m.get_markerfacecolor() != "white" for m in marked(figure, "point")}
    assert filled == {299_900: False, 300_000: True}


def test_where_lower_is_better_lower_rows_beat(store, draw):
    for variant, effective, value in (("lora", 1000, 1.5), ("worse", 2000, 1.9)):
        add(store, variant, effective, [value, value + 0.01], metric__name="rmse", metric__higher_is_better=False)
    picture, figure = only(draw(KIND))
    assert picture.caption.endswith("they are lora.")
    assert figure.axes[0].get_ylabel() == "movie: rmse, best on validation (lower is better)"


def test_of_single_seeds_nothing_is_shown(store, draw):
    add(store, "lora", 1000, [0.7])
    add(store, "worse", 2000, [0.6])
    picture, figure = only(draw(KIND))
    assert all(m.get_markerfacecolor() != "white" for m in marked(figure, "point"))
    assert picture.caption.endswith("Of one seed each, no row is shown to be better than another.")
    assert not figure.legends


def test_the_legend_says_what_a_bar_and_a_mark_are(store, draw):
    add(store, "lora", 1000, [0.7, 0.8, 0.9])
    add(store, "full", 2000, [0.9])
    _, figure = only(draw(KIND))
    title, labels = legend(figure)
    assert title == "mean ± sd over seeds, n = 1 to 3; none where n = 1"
    assert labels == ["no row that costs as little is shown to be better", "such a row is"]


@pytest.mark.parametrize("rows", [3, 30])
def test_every_row_is_named_and_no_name_is_upon_another(store, draw, rows):
    for number in range(rows):
        add(store, f"variant-{number}", 1000 + number % 2, [0.5 + number / 1000])
    _, figure = only(draw(KIND))
    figure.canvas.draw()
    names = marked(figure, "name")
    assert sorted(name.get_text() for name in names) == sorted(f"variant-{number}" for number in range(rows))
    boxes = [name.get_window_extent().padded(-1) for name in names]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in boxes)


def test_bars_are_as_long_as_the_sd(store, draw):
    add(store, "lora", 1000, [0.7, 0.8])
    _, figure = only(draw(KIND))
    spans = [segment for lines in figure.axes[0].collections for segment in lines.get_segments()]
    vertical = [segment[:, 1] for segment in spans if segment[0, 0] == segment[1, 0]]
    assert [sorted(ends) for ends in vertical] == [pytest.approx([75 - 7.0711, 75 + 7.0711], abs=1e-3)]


def test_one_seed_has_no_bar_and_the_caption_says_so(store, draw):
    add(store, "lora", 1000, [0.7])
    picture, figure = only(draw(KIND))
    assert not [s for lines in figure.axes[0].collections for s in lines.get_segments()]
    assert "one seed each: no spread" in picture.caption


def test_a_method_without_parameters_has_a_place_on_the_axis(store, draw):
    add(store, "head", 0, [0.5])
    add(store, "lora", 1000, [0.7])
    add(store, "full", 10_000_000, [0.9])
    _, figure = only(draw(KIND))
    (axes,) = figure.axes
    assert axes.get_xscale() == "symlog"
    assert {m.get_xdata()[0] for m in marked(figure, "point")} == {0, 1000, 10_000_000}
    assert axes.get_xlim()[0] <= 0


def test_a_row_whose_cost_was_not_recorded_is_left_out_with_the_reason(store, draw):
    add(store, "lora", 1000, [0.7, 0.8])
    store.add("full", 0, 0.9, params__effective=None)
    (picture,), (left_out,) = draw(KIND)
    assert len(marked(picture.draw(), "point")) == 1
    assert (left_out.what, left_out.reason) == ("full on movie", "parameters not recorded in 1 of 1 runs")


def test_rows_that_can_not_be_compared_make_no_picture(store, draw):
    add(store, "lora", 1000, [0.7])
    add(store, "full", 2000, [0.9], metric__checkpoint="last")
    pictures, (left_out,) = draw(KIND)
    assert not pictures
    assert left_out.reason == "which row is better can't be said: the rows differ in checkpoint"


def test_memory_and_time_are_drawn_too(store, draw):
    add(store, "lora", 1000, [0.7, 0.8])
    (memory, time), left_out = draw("metric-memory", "metric-time")
    assert not left_out
    assert (memory.name, time.name) == ("metric-memory.movie", "metric-time.movie")
    assert marked(memory.draw(), "point")[0].get_xdata()[0] == pytest.approx(90 + 2 + 4 + 50)
    assert marked(time.draw(), "point")[0].get_xdata()[0] == pytest.approx(12.5)


def test_every_task_has_its_picture(store, draw):
    for task in ("movie", "opinion"):
        store.add("lora", 0, task=task)
    pictures, _ = draw(KIND)
    assert [picture.name for picture in pictures] == ["metric-parameters.movie", "metric-parameters.opinion"]
