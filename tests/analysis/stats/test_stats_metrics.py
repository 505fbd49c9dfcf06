"""Metrics over resamples are scikit-learn's and scipy's, as those are that runs are scored with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats as scipy_stats
from sklearn import metrics as sklearn_metrics

from analysis.stats.additive import Additive
from analysis.stats.metrics import over_resamples
from trainer.objectives import metrics
from trainer.objectives.metrics import Classes

pytestmark = pytest.mark.filterwarnings("ignore:A single label", "ignore:An input array is constant")  # in the oracle
CLASSES = ["accuracy", "f1", "f1_macro", "matthews"]
NUMBERS = ["pearson", "spearman", "rmse"]


def macro(labels, predictions, classes):
    ids = range(classes.count)
    return sklearn_metrics.f1_score(labels, predictions, labels=ids, average="macro", zero_division=0.0)


def f1(labels, predictions, classes):
    if classes.count > 2:
        return macro(labels, predictions, classes)
    return sklearn_metrics.f1_score(labels == classes.positive, predictions == classes.positive, zero_division=0.0)


def correlation(function: Callable) -> Callable:
    def value(labels, predictions, classes):
        if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
            return 0.0
        return function(labels.astype(np.float64), predictions.astype(np.float64)).statistic

    return value


ORACLES = {
    "accuracy": lambda labels, predictions, classes: sklearn_metrics.accuracy_score(labels, predictions),
    "f1": f1,
    "f1_macro": macro,
    "matthews": lambda labels, predictions, classes: sklearn_metrics.matthews_corrcoef(labels, predictions),
    "pearson": correlation(scipy_stats.pearsonr),
    "spearman": correlation(scipy_stats.spearmanr),
    "rmse": lambda labels, predictions, classes: np.sqrt(
        sklearn_metrics.mean_squared_error(labels.astype(np.float64), predictions.astype(np.float64))
    ),
}


def check(
    metric: str, labels: np.ndarray, predictions: np.ndarray, classes: int = 1, positive: int = 0, resamples: int = 40
) -> None:
    """Each resample against the oracle, one by one, and all examples as a run scores them. classes: 1 for numbers."""
    of = Classes(classes, positive)
    index = np.random.default_rng(0).integers(0, len(labels), size=(resamples, len(labels)))
    found = over_resamples(metric, labels, predictions, index, of)
    assert found.shape == (len(predictions), resamples)
    expected = [[ORACLES[metric](labels[i], one[i], of) for i in index] for one in predictions]
    assert found == pytest.approx(np.array(expected), rel=1e-12, abs=1e-12)
    scored = [metrics.compute([metric], one, labels, of)[metric] for one in predictions]
    assert scored == pytest.approx([ORACLES[metric](labels, one, of) for one in predictions], abs=1e-12)


def test_a_formula_is_of_the_sums_of_each_resample():
    stats = {"nll": np.array([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]]), "tokens": np.array([[1.0, 2.0, 3.0]] * 2)}
    index = np.array([[0, 1, 2], [2, 2, 2], [0, 0, 1]])
    found = Additive("exp(nll / tokens)", stats).over(index)
    assert found == pytest.approx(np.exp([[9 / 6, 6 / 3, 4 / 4], [3 / 6, 3 / 3, 0.0]]))
    mean = Additive("nll / examples", stats).over(index)
    assert mean == pytest.approx(np.array([[9, 18, 4], [3, 9, 0]]) / 3)


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
