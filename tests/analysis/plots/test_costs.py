"""The metric against costs: points, bars, the front."""

from __future__ import annotations

import pytest
from matplotlib.colors import to_rgba

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


def test_marks_on_the_front_are_filled_and_the_caption_names_them(store, draw):
    add(store, "lora", 1000, [0.7])
    add(store, "worse", 2000, [0.6])
    add(store, "full", 90_000, [0.9])
    picture, figure = only(draw(KIND))
    filled = {m.get_xdata()[0]: m.get_markerfacecolor() != "white" for m in marked(figure, "point")}
    assert filled == {1000: True, 2000: False, 90_000: True}
    assert picture.caption.endswith("On the Pareto front (no row is as cheap and better): lora, full.")


def test_where_lower_is_better_the_front_goes_down(store, draw):
    for variant, effective, value in (("lora", 1000, 1.5), ("worse", 2000, 1.9), ("full", 90_000, 0.5)):
        add(store, variant, effective, [value], metric__name="rmse", metric__higher_is_better=False)
    picture, figure = only(draw(KIND))
    assert "better): lora, full." in picture.caption
    assert figure.axes[0].get_ylabel() == "movie: rmse, best on validation (lower is better)"


def test_the_front_is_a_staircase_that_ends_at_the_right(store, draw):
    add(store, "lora", 1000, [0.7])
    add(store, "full", 2000, [0.9])
    _, figure = only(draw(KIND))
    (front,) = marked(figure, "front")
    assert front.get_drawstyle() == "steps-post"
    assert list(front.get_xdata()) == [1000, 2000, figure.axes[0].get_xlim()[1]]
    assert list(front.get_ydata()) == pytest.approx([70, 90, 90])


def test_the_legend_says_what_a_bar_is(store, draw):
    add(store, "lora", 1000, [0.7, 0.8, 0.9])
    add(store, "full", 2000, [0.9])
    _, figure = only(draw(KIND))
    title, labels = legend(figure)
    assert title == "mean ± sd over seeds, n = 1 to 3; none where n = 1"
    assert labels == ["full", "lora", "Pareto front (filled marks)"]


def test_bars_are_as_long_as_the_sd(store, draw):
    add(store, "lora", 1000, [0.7, 0.8])
    _, figure = only(draw(KIND))
    spans = [segment for lines in figure.axes[0].collections for segment in lines.get_segments()]
    vertical = [segment[:, 1] for segment in spans if segment[0, 0] == segment[1, 0]]
    assert [sorted(ends) for ends in vertical] == [pytest.approx([75 - 7.0711, 75 + 7.0711], abs=1e-3)]


def test_one_seed_has_no_bar_and_the_legend_says_so(store, draw):
    add(store, "lora", 1000, [0.7])
    picture, figure = only(draw(KIND))
    assert not [s for lines in figure.axes[0].collections for s in lines.get_segments()]
    assert legend(figure)[0] == "one seed each: no spread"
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


def test_rows_at_one_place_can_all_be_seen(store, draw):
    for variant in ("a", "b", "c"):
        add(store, variant, 1000, [0.7])
    _, figure = only(draw(KIND))
    assert [mark.get_markersize() for mark in marked(figure, "point")] == [12, 9, 6]


def test_many_rows_are_grey_but_those_on_the_front(store, draw):
    for number in range(30):
        add(store, f"v{number}", 1000 + number, [0.5 - number / 1000 if number else 0.6])
    _, figure = only(draw(KIND))
    marks = marked(figure, "point")
    grey = [mark for mark in marks if to_rgba(mark.get_color()) == to_rgba("#888888")]
    assert (len(marks), len(grey)) == (30, 29)
    assert legend(figure)[1] == ["v0", "not on the front (29 rows)", "Pareto front (filled marks)"]


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
