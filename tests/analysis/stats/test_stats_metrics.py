"""Metrics over resamples are the metrics that runs are scored with."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.stats.metrics import KNOWN, Classes, over_resamples
from trainer.objectives import metrics

pytestmark = pytest.mark.filterwarnings("ignore:A single label")  # of scikit-learn, in the oracle
CLASSES = ["accuracy", "f1", "f1_macro", "matthews"]
NUMBERS = ["pearson", "spearman", "rmse"]


def test_every_metric_of_the_trainer_is_known():
    assert list(KNOWN) == list(metrics._METRICS)


def check(
    metric: str, labels: np.ndarray, predictions: np.ndarray, classes: int = 1, positive: int = 0, resamples: int = 40
) -> None:
    """Each resample against the trainer's metric, one by one. classes: of the task; 1 for a regression."""
    trained = metrics.Classes(classes, positive)
    index = np.random.default_rng(0).integers(0, len(labels), size=(resamples, len(labels)))
    found = over_resamples(metric, labels, predictions, index, Classes(classes, positive))
    assert found.shape == (len(predictions), resamples)
    expected = [[metrics.compute([metric], one[i], labels[i], trained)[metric] for i in index] for one in predictions]
    assert found == pytest.approx(np.array(expected), abs=1e-12)


@pytest.mark.parametrize("metric", CLASSES)
@pytest.mark.parametrize("positive", [0, 1])
@pytest.mark.parametrize("classes, n", [(2, 50), (2, 4), (5, 60), (5, 3)])
def test_of_classes(metric, classes, n, positive):
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, n)
    check(
        metric, labels, np.where(rng.random((3, n)) < 0.6, labels, rng.integers(0, classes, (3, n))), classes, positive
    )


@pytest.mark.parametrize("metric", CLASSES)
def test_a_class_that_is_in_no_row_is_one_of_the_task_all_the_same(metric):
    labels, predictions = np.array([0, 0, 1, 1, 0]), np.array([[0, 1, 1, 0, 0], [0, 0, 1, 1, 2]])
    check(metric, labels, predictions, classes=3)
    index = np.arange(5)[None]
    f1, macro = (over_resamples(name, labels, predictions, index, Classes(3)) for name in ("f1", "f1_macro"))
    assert f1.tolist() == macro.tolist()


@pytest.mark.parametrize("metric", CLASSES)
@pytest.mark.parametrize("label, prediction", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_where_all_labels_and_predictions_are_one_class(metric, label, prediction):
    check(metric, np.full(6, label), np.full((2, 6), prediction), classes=2, positive=1, resamples=2)


@pytest.mark.parametrize("metric", NUMBERS)
@pytest.mark.parametrize("n", [3, 40])
def test_of_numbers(metric, n):
    rng = np.random.default_rng(n)
    labels = rng.normal(size=n).round(1)  # with ties
    check(metric, labels, (labels + rng.normal(size=(3, n))).round(1))


@pytest.mark.parametrize("metric", NUMBERS)
def test_of_float32(metric):
    rng = np.random.default_rng(0)
    labels = rng.normal(size=30).astype(np.float32)
    check(metric, labels, (labels + rng.normal(size=(2, 30)) * 1e20).astype(np.float32))


@pytest.mark.parametrize("metric", NUMBERS)
def test_of_equal_numbers(metric):
    varied = np.arange(5.0)
    check(metric, varied, np.full((1, 5), 0.1))
    check(metric, np.full(5, 0.1), varied[None])
