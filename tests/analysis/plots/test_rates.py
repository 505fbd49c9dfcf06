"""The metric against the learning rate."""

from __future__ import annotations

import pytest

from tests.analysis.plots.conftest import marked, only

KIND = "metric-rate"


def tune(store, variant, means, **changes):
    for rate, value in means.items():
        store.add(variant, 0, value, config={"optim.lr": rate}, select__accuracy=value, **changes)


def test_a_panel_for_each_method_with_its_best_rate_and_the_range_that_keeps_it(store, draw):
    tune(store, "lora", {1e-4: 0.5, 1e-3: 0.8, 1e-2: 0.79, 1e-1: 0.5})
    tune(store, "sora", {1e-4: 0.5, 1e-3: 0.6, 1e-2: 0.9, 1e-1: 0.2})
    picture, figure = only(draw(KIND))
    assert picture.name == "metric-rate.movie"
    assert [axes.get_title() for axes in figure.axes] == ["lora", "sora"]
    best = [(mark.get_xdata()[0], mark.get_ydata()[0]) for mark in marked(figure, "best")]
    assert best == [pytest.approx((1e-3, 80)), pytest.approx((1e-2, 90))]
    bands = [mark.get_x() for mark in marked(figure, "good")]
    assert bands == pytest.approx([1e-3, 1e-2])
    (reference,) = marked(figure, "reference")
    assert list(reference.get_ydata()) == pytest.approx([50, 80, 79, 50]), "LoRA's curve, behind the other"


def test_an_optimum_at_the_edge_is_marked(store, draw):
    tune(store, "lora", {1e-4: 0.5, 1e-3: 0.7, 1e-2: 0.8})
    _, figure = only(draw(KIND))
    assert figure.axes[0].get_title() == "lora (edge)"


def test_a_method_with_few_rates_is_left_out(store, draw):
    tune(store, "lora", {1e-4: 0.5, 1e-3: 0.7})
    pictures, (left_out,) = draw(KIND)
    assert not pictures and (left_out.what, left_out.reason) == ("lora on movie", "fewer than 3 learning rates")
