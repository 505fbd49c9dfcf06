"""How cost grows: slopes of lines that are known, and every size measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks import growth
from benchmarks.stepper import Times
from tests.classifiers import pristine


def test_the_slope_is_that_of_the_line_with_the_least_squares():
    assert growth.slope({1: 5.0, 4: 14.0, 16: 50.0}) == pytest.approx(3)
    points = {1: 2.0, 2: 2.5, 4: 9.0}
    x, y = np.array(list(points)), np.array(list(points.values()))
    by_hand = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    assert growth.slope(points) == pytest.approx(by_hand)


def test_the_power_is_that_of_a_power_law():
    assert growth.power({size: 0.5 * size**1.7 for size in (128, 256, 512, 1024)}) == pytest.approx(1.7)


def test_a_cost_that_is_not_positive_has_no_power():
    assert math.isnan(growth.power({128: 1.0, 256: 0.0})) and math.isnan(growth.power({128: -1.0, 256: 3.0}))


@pytest.mark.parametrize(("width", "heads"), [(32, 1), (64, 2)])
def test_models_of_other_widths_have_heads_of_32_and_two_blocks(width, heads):
    config = growth._of_width(width).model.config
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (width, heads, 4 * width)
    assert config.num_hidden_layers == 2


def test_ranks_layers_and_widths_are_measured_over_the_floor(tiny_model, monkeypatch):
    attached = []

    def in_turn(steppers, rounds):
        """Milliseconds that are known: 2 for each rank of each adapter."""
        assert rounds == 3 and next(iter(steppers)) == "floor"
        attached.append({name: stepper.variant for name, stepper in steppers.items()})
        ranks = {name: sum(stepper.variant.ranks().values()) for name, stepper in steppers.items()}
        return {name: Times(0, 0, 0, 0, 0, 2.0 * rank, 3) for name, rank in ranks.items()}

    monkeypatch.setattr(growth, "in_turn", in_turn)
    monkeypatch.setattr(growth, "RANKS", (1, 2, 4))
    monkeypatch.setattr(growth, "BLOCKS", (1, 2))
    monkeypatch.setattr(growth, "WIDTHS", (32, 64))
    monkeypatch.setattr(growth, "WIDTHS_RANK", 8)
    found = growth.measure(pristine(tiny_model, 2), 2, 5, 3, torch.device("cpu"))
    assert {name: (growing.over_floor, growing.unit) for name, growing in found.items()} == {
        "rank": ({1: 24.0, 2: 48.0, 4: 96.0}, "ms a rank"),
        "layers": ({6: 96.0, 12: 192.0}, "ms a layer"),
        "width at rank 8": ({32: 192.0, 64: 192.0}, "as the power of the width"),
    }
    assert [found[name].slope for name in found] == [pytest.approx(24), pytest.approx(16), pytest.approx(0, abs=1e-9)]
    assert [len(variants["floor"].adapters) for variants in attached] == [0, 0, 0, 0]


def test_it_measures_real_steps(tiny_model, monkeypatch):
    for name, sizes in (("RANKS", (1, 2)), ("BLOCKS", (1, 2)), ("WIDTHS", (64, 128))):
        monkeypatch.setattr(growth, name, sizes)
    found = growth.measure(pristine(tiny_model, 2), 2, 5, 2, torch.device("cpu"))
    assert [list(growing.over_floor) for growing in found.values()] == [[1, 2], [6, 12], [64, 128]]
    assert all(isinstance(growing.slope, float) for growing in found.values())
