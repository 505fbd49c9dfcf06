"""Metrics against values worked out by hand, and what they do where nothing is defined."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trainer.errors import ConfigError
from trainer.objectives.metrics import NUMBERS, Classes, check, classes, compute, higher_is_better, means_over_classes

TWO = Classes(2)


def test_of_classes_by_hand():
    # class 1: 2 right, 1 predicted wrongly, 1 missed; class 0: 1 right
    predictions, labels = np.array([1, 1, 1, 0, 0]), np.array([1, 1, 0, 1, 0])
    found = compute(["matthews", "accuracy", "f1", "f1_macro"], predictions, labels, TWO)
    assert list(found) == ["matthews", "accuracy", "f1", "f1_macro"]
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["f1_macro"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["matthews"] == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))
    assert all(type(value) is float for value in found.values())


def test_f1_of_more_than_two_classes_is_the_macro_mean():
    found = compute(["f1", "f1_macro"], [0, 1, 2, 2], [0, 1, 2, 1], Classes(3))
    assert found["f1"] == found["f1_macro"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


def test_what_f1_means_is_the_tasks_and_not_the_rows():
    """Three classes, the rarest with no row: the mean over all three, in which it counts as 0."""
    predictions, labels = [0, 0, 1, 1, 0], [0, 0, 1, 0, 0]
    found = compute(["f1", "f1_macro"], predictions, labels, Classes(3))
    assert found["f1"] == found["f1_macro"] == pytest.approx((6 / 7 + 2 / 3) / 3)
    once = compute(["f1", "f1_macro"], [0, 0, 1, 1, 2], labels, Classes(3))
    assert once["f1"] == once["f1_macro"] == pytest.approx((2 * 2 / 6 + 2 / 3) / 3)
    # Of two classes with rows of one: of the positive class as ever.
    assert compute(["f1"], [0, 0], [0, 0], TWO) == {"f1": 0.0}
    assert compute(["f1"], [0, 0], [0, 0], Classes(2, 0)) == {"f1": 1.0}


def test_f1_of_two_classes_is_that_of_the_positive_one():
    predictions, labels = np.array([1, 1, 1, 0, 0]), np.array([1, 1, 0, 1, 0])
    assert compute(["f1"], predictions, labels, TWO)["f1"] == pytest.approx(2 / 3)
    assert compute(["f1"], predictions, labels, Classes(2, 0))["f1"] == pytest.approx(1 / 2)
    assert compute(["f1_macro"], predictions, labels, TWO) == compute(["f1_macro"], predictions, labels, Classes(2, 0))


def test_the_positive_class_is_named_by_the_task():
    assert classes(("fake", "real"), None, ["f1"]) == Classes(2, 1)
    assert classes(("fake", "real"), "fake", ["accuracy", "f1"]) == Classes(2, 0)
    assert classes(("0", "1"), 0, ["f1"]) == Classes(2, 0)
    assert classes(("a", "b", "c"), None, ["f1"]) == Classes(3)
    assert classes(None, None, ["rmse"]) == NUMBERS
    with pytest.raises(ConfigError, match=r"task.positive: 'true'; allowed: 'fake', 'real', or null"):
        classes(("fake", "real"), "true", ["f1"])
    with pytest.raises(ConfigError, match=r"task.positive: 'a' in a task with 3 classes; allowed: null"):
        classes(("a", "b", "c"), "a", ["f1"])
    with pytest.raises(ConfigError, match=r"task.positive: 'a' without f1 in task.metrics; allowed: null"):
        classes(("a", "b"), "a", ["accuracy"])


def test_which_metrics_are_lower_where_a_class_has_no_row():
    assert means_over_classes(["accuracy", "f1", "f1_macro"], 2) == ["f1_macro"]
    assert means_over_classes(["accuracy", "f1", "f1_macro"], 3) == ["f1", "f1_macro"]


def test_an_id_that_is_no_class_is_an_error():
    with pytest.raises(ValueError, match="labels 0 to 2 in a task with 2 classes"):
        compute(["f1"], [0, 1], [0, 2], TWO)


def test_of_numbers_by_hand():
    found = compute(["pearson", "spearman", "rmse"], [1.0, 2.0, 4.0], [1.0, 3.0, 2.0], NUMBERS)
    assert found["pearson"] == pytest.approx(1 / math.sqrt((14 / 3) * 2))
    assert found["spearman"] == pytest.approx(0.5)
    assert found["rmse"] == pytest.approx(math.sqrt((0 + 1 + 4) / 3))


def test_where_nothing_is_defined_the_value_is_zero():
    assert compute(["matthews", "f1"], [0, 0, 0], [0, 1, 0], TWO) == {"matthews": 0.0, "f1": 0.0}
    assert compute(["pearson", "spearman"], [2.0, 2.0], [1.0, 3.0], NUMBERS) == {"pearson": 0.0, "spearman": 0.0}
    assert compute(["pearson", "spearman"], [1.0, 3.0], [2.0, 2.0], NUMBERS) == {"pearson": 0.0, "spearman": 0.0}
    assert compute(["pearson"], [1.0], [1.0], NUMBERS) == {"pearson": 0.0}


def test_large_float32_predictions_do_not_overflow():
    found = compute(["pearson"], np.array([1e30, 2e30, 3e30], dtype=np.float32), [1.0, 2.0, 3.0], NUMBERS)
    assert found["pearson"] == pytest.approx(1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_an_error(value):
    with pytest.raises(ValueError, match="1 of 2 predictions are not finite"):
        compute(["pearson"], [value, 1.0], [1.0, 2.0], NUMBERS)


@pytest.mark.parametrize(("predictions", "labels"), [([], []), ([1], [1, 0]), ([[1, 0]], [[1, 0]])])
def test_wrong_shapes_are_an_error(predictions, labels):
    with pytest.raises(ValueError, match="expected"):
        compute(["accuracy"], predictions, labels, TWO)


def test_names_are_checked():
    with pytest.raises(ConfigError, match=r"task.metrics: 'acuracy'; allowed: accuracy, f1"):
        compute(["acuracy"], [1], [1], TWO)
    with pytest.raises(ConfigError, match="'accuracy' in a regression; allowed: pearson, spearman, rmse"):
        check(["pearson", "accuracy"], ["pearson", "spearman", "rmse"], "regression")
    with pytest.raises(ConfigError, match=r"task.metrics: empty"):
        check([], ["accuracy"], "classification")
    check(["accuracy"], ["accuracy"], "classification")


def test_which_way_is_better():
    assert higher_is_better("matthews") and not higher_is_better("rmse")
    with pytest.raises(ConfigError):
        higher_is_better("lose")
