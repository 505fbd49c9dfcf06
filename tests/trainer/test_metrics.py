"""Metrics against values worked out by hand, and what they do where nothing is defined."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trainer.errors import ConfigError
from trainer.metrics import check, compute, higher_is_better


def test_of_classes_by_hand():
    # class 1: 2 right, 1 predicted wrongly, 1 missed; class 0: 1 right
    predictions, labels = np.array([1, 1, 1, 0, 0]), np.array([1, 1, 0, 1, 0])
    found = compute(["matthews", "accuracy", "f1", "f1_macro"], predictions, labels)
    assert list(found) == ["matthews", "accuracy", "f1", "f1_macro"]
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["f1_macro"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["matthews"] == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))
    assert all(type(value) is float for value in found.values())


def test_f1_of_more_than_two_classes_is_the_macro_mean():
    found = compute(["f1", "f1_macro"], [0, 1, 2, 2], [0, 1, 2, 1])
    assert found["f1"] == found["f1_macro"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


def test_of_numbers_by_hand():
    found = compute(["pearson", "spearman", "rmse"], [1.0, 2.0, 4.0], [1.0, 3.0, 2.0])
    assert found["pearson"] == pytest.approx(1 / math.sqrt((14 / 3) * 2))
    assert found["spearman"] == pytest.approx(0.5)
    assert found["rmse"] == pytest.approx(math.sqrt((0 + 1 + 4) / 3))


def test_where_nothing_is_defined_the_value_is_zero():
    assert compute(["matthews", "f1"], [0, 0, 0], [0, 1, 0]) == {"matthews": 0.0, "f1": 0.0}
    assert compute(["pearson", "spearman"], [2.0, 2.0], [1.0, 3.0]) == {"pearson": 0.0, "spearman": 0.0}
    assert compute(["pearson", "spearman"], [1.0, 3.0], [2.0, 2.0]) == {"pearson": 0.0, "spearman": 0.0}
    assert compute(["pearson"], [1.0], [1.0]) == {"pearson": 0.0}


def test_large_float32_predictions_do_not_overflow():
    found = compute(["pearson"], np.array([1e30, 2e30, 3e30], dtype=np.float32), [1.0, 2.0, 3.0])
    assert found["pearson"] == pytest.approx(1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_an_error(value):
    with pytest.raises(ValueError, match="1 of 2 predictions are not finite"):
        compute(["pearson"], [value, 1.0], [1.0, 2.0])


@pytest.mark.parametrize(("predictions", "labels"), [([], []), ([1], [1, 0]), ([[1, 0]], [[1, 0]])])
def test_wrong_shapes_are_an_error(predictions, labels):
    with pytest.raises(ValueError, match="expected"):
        compute(["accuracy"], predictions, labels)


def test_names_are_checked():
    with pytest.raises(ConfigError, match=r"task.metrics: 'acuracy'; allowed: accuracy, f1"):
        compute(["acuracy"], [1], [1])
    with pytest.raises(ConfigError, match="'accuracy' in a regression; allowed: pearson, spearman, rmse"):
        check(["pearson", "accuracy"], regression=True)
    with pytest.raises(ConfigError, match="'rmse' in a classification; allowed: accuracy, f1, f1_macro, matthews"):
        check(["rmse"], regression=False)
    with pytest.raises(ConfigError, match=r"task.metrics: empty"):
        check([], regression=False)
    check(["accuracy"], regression=False)


def test_which_way_is_better():
    assert higher_is_better("matthews") and not higher_is_better("rmse")
    with pytest.raises(ConfigError):
        higher_is_better("loss")
