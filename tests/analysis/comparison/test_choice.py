"""The best learning rate of a method on a task: by the selection split, of equal trials, never one that diverged."""

from __future__ import annotations

import pytest

from analysis.comparison.choice import choose
from analysis.errors import AnalysisError
from analysis.records import runs


@pytest.fixture
def tuned(store):
    """Adds runs of a method, by rate the metric on the selection split; None for a failed run."""

    def add(scores: dict[float, float | None], variant: str = "lora", task: str = "movie", seed: int = 100, **more):
        for rate, score in scores.items():
            measured = {"error": "diverged"} if score is None else {"select__accuracy": score, **more}
            store.add(
                variant,
                seed,
                0.5,
                task,
                config={"optim.lr": rate},
                metrics__accuracy=None if score is None else 0.5,
                **measured,
            )

    return add


def test_the_selection_split_decides_and_not_the_reported_one(store):
    for rate, select, report in ((1e-3, 0.7, 0.9), (1e-2, 0.8, 0.6), (1e-1, 0.6, 0.7)):
        store.add("lora", 100, report, config={"optim.lr": rate}, metrics__accuracy=report, select__accuracy=select)
    (by_select,) = choose(runs.read(["runs"]))
    (by_report,) = choose(runs.read(["runs"]), by="report")
    assert (by_select.value, by_select.mean, by_select.edge) == (1e-2, 0.8, False)
    assert (by_report.value, by_report.mean, by_report.edge) == (1e-3, 0.9, True)


def test_each_method_and_task_has_its_own(tuned):
    tuned({1e-3: 0.7, 1e-2: 0.6, 1e-4: 0.5})
    tuned({1e-3: 0.5, 1e-2: 0.6, 1e-4: 0.4}, variant="sora")
    tuned({1e-3: 0.5, 1e-2: 0.6, 1e-4: 0.7}, task="opinion")
    found = [(c.task, c.variant, c.value, c.edge) for c in choose(runs.read(["runs"]))]
    assert found == [("movie", "lora", 1e-3, False), ("movie", "sora", 1e-2, True), ("opinion", "lora", 1e-4, True)]


def test_means_over_seeds_and_of_equal_ones_the_smaller_value(tuned):
    tuned({1e-4: 0.5, 1e-3: 0.9, 1e-2: 0.75}, seed=100)
    tuned({1e-4: 0.5, 1e-3: 0.6, 1e-2: 0.75}, seed=101)
    (choice,) = choose(runs.read(["runs"]))
    assert choice.means == {1e-4: 0.5, 1e-3: 0.75, 1e-2: 0.75} and choice.value == 1e-3
    assert choice.seeds == (100, 101)


def test_a_value_with_a_failed_run_is_never_the_best(tuned):
    tuned({1e-4: 0.5, 1e-3: 0.6, 1e-2: 0.9}, seed=100)
    tuned({1e-4: 0.5, 1e-3: 0.6, 1e-2: None}, seed=101)
    (choice,) = choose(runs.read(["runs"]))
    assert choice.value == 1e-3 and choice.means[1e-2] is None


def test_where_less_is_better(store):
    for rate, loss in ((1e-4, 3.0), (1e-3, 2.0), (1e-2, 2.09), (1e-1, 9.0)):
        store.add(
            "lora",
            100,
            loss,
            config={"optim.lr": rate},
            metric__name="perplexity",
            metric__higher_is_better=False,
            metrics__perplexity=loss,
            select__perplexity=loss,
        )
    (choice,) = choose(runs.read(["runs"]))
    assert choice.value == 1e-3 and choice.good == (1e-3, 1e-2) and choice.decades == pytest.approx(1)


def test_the_good_range_is_unbroken_and_keeps_95_percent(tuned):
    tuned({1e-5: 0.79, 1e-4: 0.5, 1e-3: 0.76, 1e-2: 0.8, 1e-1: 0.759})
    (choice,) = choose(runs.read(["runs"]))
    assert choice.good == (1e-3, 1e-2)


def test_rows_that_differ_in_more_are_refused_by_name(store):
    for budget, rate in ((1000, 1e-3), (2000, 1e-2)):
        config = {"optim.lr": rate, "variant.budget": budget}
        store.add("lora", 100, config=config, metrics__accuracy=0.8, select__accuracy=0.8)
    with pytest.raises(AnalysisError, match=r"lora on movie: runs differ in variant\.budget; choose within one value"):
        choose(runs.read(["runs"]))


def test_unequal_trials_are_refused(tuned):
    tuned({1e-3: 0.7, 1e-2: 0.6}, seed=100)
    tuned({1e-3: 0.7}, seed=101)
    with pytest.raises(
        AnalysisError, match=r"lora on movie: optim\.lr 0\.01 has no run of seed 101; all values need it"
    ):
        choose(runs.read(["runs"]))


def test_runs_without_a_selection_split_are_refused_with_what_to_do(store):
    store.add("lora", 100, metrics__accuracy=0.8)
    with pytest.raises(AnalysisError, match=r"no accuracy on the split 'select'; run with data\.protocol=split"):
        choose(runs.read(["runs"]))


def test_a_method_that_failed_everywhere_has_no_best_value(tuned):
    tuned({1e-3: None, 1e-2: None})
    with pytest.raises(AnalysisError, match="lora on movie: no finished run"):
        choose(runs.read(["runs"]))
