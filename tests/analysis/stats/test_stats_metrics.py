"""Metrics over resamples are the metrics that runs are scored with."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.stats.metrics import KNOWN, over_resamples
from trainer import metrics

pytestmark = pytest.mark.filterwarnings("ignore:A single label")  # of scikit-learn, in the oracle
CLASSES = ["accuracy", "f1", "f1_macro", "matthews"]
NUMBERS = ["pearson", "spearman", "rmse"]


def test_every_metric_of_the_trainer_is_known():
    assert list(KNOWN) == list(metrics._METRICS)


def check(metric: str, labels: np.ndarray, predictions: np.ndarray, resamples: int = 40) -> None:
    """Each resample against the trainer's metric, one by one."""
    index = np.random.default_rng(0).integers(0, len(labels), size=(resamples, len(labels)))
    found = over_resamples(metric, labels, predictions, index)
    assert found.shape == (len(predictions), resamples)
    expected = [[metrics.compute([metric], one[i], labels[i])[metric] for i in index] for one in predictions]
    assert found == pytest.approx(np.array(expected), abs=1e-12)


@pytest.mark.parametrize("metric", CLASSES)
@pytest.mark.parametrize("classes, n", [(2, 50), (2, 4), (5, 60)])
def test_of_classes(metric, classes, n):
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, n)
    check(metric, labels, np.where(rng.random((3, n)) < 0.6, labels, rng.integers(0, classes, (3, n))))


def test_f1_of_three_classes_stays_that_on_a_resample_with_two():
    labels, predictions = np.array([0, 0, 1, 1, 2]), np.array([[0, 1, 1, 0, 2]])
    index = np.array([[0, 1, 2, 2, 3]])
    assert over_resamples("f1", labels, predictions, index) == over_resamples("f1_macro", labels, predictions, index)


@pytest.mark.parametrize("metric", CLASSES)
@pytest.mark.parametrize("label, prediction", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_where_all_labels_and_predictions_are_one_class(metric, label, prediction):
    check(metric, np.full(6, label), np.full((2, 6), prediction), resamples=2)


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
