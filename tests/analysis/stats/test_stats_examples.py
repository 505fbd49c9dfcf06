"""Two methods over the same examples."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.stats import examples
from analysis.stats.metrics import Classes

TWO = Classes(2)


def models(labels: np.ndarray, accuracies: list[float], seed: int = 0) -> np.ndarray:
    """Predictions (m, n) that are right as often as said."""
    rng = np.random.default_rng(seed)
    return np.stack([np.where(rng.random(len(labels)) < right, labels, 1 - labels) for right in accuracies])


LABELS = np.random.default_rng(0).integers(0, 2, 800)
A, B = models(LABELS, [0.85, 0.86, 0.84], seed=1), models(LABELS, [0.80, 0.82, 0.81], seed=2)


def right(predictions: np.ndarray) -> np.ndarray:
    return predictions == LABELS


def test_differences_are_those_of_the_metric():
    mean, by_seed = examples.bootstrap("accuracy", LABELS, A, B, 200, TWO)
    expected = right(A).mean(axis=1) - right(B).mean(axis=1)
    assert [one.difference for one in by_seed] == pytest.approx(list(expected))
    assert mean.difference == pytest.approx(expected.mean())
    assert all(one.low < one.difference < one.high for one in (mean, *by_seed))


def test_the_interval_is_as_wide_as_the_closed_form_says():
    mean, by_seed = examples.bootstrap("accuracy", LABELS, A, B, 4000, TWO)
    each = right(A).astype(float) - right(B)
    for found, values in zip((mean, *by_seed), (each.mean(axis=0), *each), strict=True):
        width = 2 * 1.96 * values.std() / np.sqrt(len(LABELS))
        assert found.high - found.low == pytest.approx(width, rel=0.06)


def test_seeds_that_err_together_make_no_narrower_interval():
    mean, by_seed = examples.bootstrap("accuracy", LABELS, A[[0, 0, 0]], B[[0, 0, 0]], 500, TWO)
    assert by_seed == [mean] * 3
    apart, _ = examples.bootstrap("accuracy", LABELS, A, B, 500, TWO)
    assert apart.high - apart.low < 0.75 * (mean.high - mean.low)


@pytest.mark.parametrize("metric", ["accuracy", "f1", "f1_macro", "matthews"])
def test_the_interval_covers_the_truth(metric):
    rng = np.random.default_rng(1)
    # Two classes of one size, errors of both kinds alike: the true metrics are known.
    truth = {"accuracy": 0.1, "f1": 0.1, "f1_macro": 0.1, "matthews": 0.2}[metric]
    covered = 0
    for _ in range(300):
        labels = rng.integers(0, 2, 200)
        a, b = (np.where(rng.random(200) < accuracy, labels, 1 - labels)[None] for accuracy in (0.85, 0.75))
        mean, _ = examples.bootstrap(metric, labels, a, b, 300, TWO)
        covered += mean.low <= truth <= mean.high
    assert 0.91 <= covered / 300 <= 0.98


def test_the_interval_of_a_correlation_is_as_wide_as_fishers():
    rng = np.random.default_rng(0)
    labels = rng.normal(size=1000)
    predictions = (labels + rng.normal(scale=0.75, size=1000))[None]
    constant = np.zeros((1, 1000))  # its correlation is 0 on every resample
    mean, _ = examples.bootstrap("pearson", labels, predictions, constant, 1000, TWO)
    fisher = np.tanh(np.arctanh(mean.difference) + np.array([-1.96, 1.96]) / np.sqrt(997))
    assert (mean.low, mean.high) == pytest.approx(tuple(fisher), abs=0.005)


def test_the_same_bytes_twice_and_mirrored_the_other_way_round():
    once, again = (examples.bootstrap("f1", LABELS, A, B, 300, TWO) for _ in range(2))
    assert once == again
    mean, mirrored = once[0], examples.bootstrap("f1", LABELS, B, A, 300, TWO)[0]
    assert (mirrored.low, mirrored.high) == pytest.approx((-mean.high, -mean.low))


@pytest.mark.parametrize("metric", ["accuracy", "f1", "f1_macro", "matthews", "pearson", "spearman", "rmse"])
def test_equal_predictions_differ_nowhere(metric):
    mean, by_seed = examples.bootstrap(metric, LABELS, A, A, 100, TWO)
    assert {mean, *by_seed} == {examples.Interval(0.0, 0.0, 0.0)}


def test_many_examples_in_pieces_are_the_same_resamples(monkeypatch):
    whole = examples.bootstrap("accuracy", LABELS, A, B, 300, TWO)
    monkeypatch.setattr(examples, "_ENTRIES", 7 * len(LABELS))
    assert examples.bootstrap("accuracy", LABELS, A, B, 300, TWO) == whole


def pairs(both: int, a_alone: int, b_alone: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    a = [True] * both + [True] * a_alone + [False] * b_alone + [False] * neither
    b = [True] * both + [False] * a_alone + [True] * b_alone + [False] * neither
    return np.array(a), np.array(b)


def test_mcnemar_of_a_textbook():
    # Fagerland, Lydersen and Laake 2013: airway hyper-responsiveness before and after a transplantation.
    found = examples.mcnemar(*pairs(1, 1, 7, 12))
    assert (found.a_alone, found.b_alone) == (1, 7)
    assert found.p == pytest.approx(0.0703, abs=5e-5)


@pytest.mark.parametrize("a_alone, b_alone, p", [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 2 / 2**5), (6, 0, 2 / 2**6)])
def test_mcnemar_by_hand(a_alone, b_alone, p):
    assert examples.mcnemar(*pairs(30, a_alone, b_alone, 4)).p == pytest.approx(p)


def test_the_bootstrap_of_f1_is_of_the_positive_class_and_of_all_classes_of_the_task():
    first, second = (examples.bootstrap("f1", LABELS, A, B, 100, Classes(2, positive))[0] for positive in (0, 1))
    flipped, _ = examples.bootstrap("f1", 1 - LABELS, 1 - A, 1 - B, 100, TWO)
    assert first == flipped != second
    # Of three classes one is in no row: it counts as 0 in every resample, and the mean is over three.
    of_two, _ = examples.bootstrap("f1_macro", LABELS, A, B, 100, TWO)
    of_three, _ = examples.bootstrap("f1", LABELS, A, B, 100, Classes(3))
    assert of_three.difference == pytest.approx(2 / 3 * of_two.difference)
