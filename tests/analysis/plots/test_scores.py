"""The metric of every seed, row by row."""

from __future__ import annotations

import pytest

from tests.analysis.plots.conftest import marked, only

KIND = "metric-seeds"


def test_every_seed_has_a_dot_and_every_row_its_mean_the_best_first(store, draw):
    for variant, values in (("lora", [0.7, 0.8]), ("full", [0.9, 0.92, 0.94])):
        for seed, value in enumerate(values):
            store.add(variant, seed, value)
    picture, figure = only(draw(KIND))
    assert picture.name == "metric-seeds.movie"
    dots = [sorted(mark.get_xdata()) for mark in marked(figure, "seeds")]
    assert dots == [pytest.approx([90, 92, 94]), pytest.approx([70, 80])]
    assert [mark.get_xdata()[0] for mark in marked(figure, "mean")] == pytest.approx([92, 75])
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["full", "lora"]
    assert [text.get_text() for text in axes.texts] == ["92.0 ± 2.0 (3)", "75.0 ± 7.1 (2)"]


def test_where_lower_is_better_the_lowest_is_first(store, draw):
    for variant, value in (("lora", 1.5), ("full", 0.5)):
        store.add(variant, 0, value, metric__name="rmse", metric__higher_is_better=False)
    _, figure = only(draw(KIND))
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["full", "lora"]
    assert axes.get_xlabel() == "movie: rmse, best on validation (lower is better)"


def test_rows_that_can_not_be_compared_make_no_picture(store, draw):
    store.add("lora", 0, 0.7)
    store.add("full", 0, 0.9, metric__checkpoint="last")
    pictures, (left_out,) = draw(KIND)
    assert not pictures and "the rows differ in checkpoint" in left_out.reason
