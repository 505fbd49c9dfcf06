"""Averages in GLUE's way and average ranks over tasks."""

from __future__ import annotations

import csv
import random

import pytest
from scipy import stats

from analysis.tables import averages, glue
from analysis.tables.cells import spread
from trainer.record import Metric, Record

TWO = ("movie", "opinion")


def fill(store, variant, values, **changes):
    """One run for each task and seed: `values` by task."""
    for task, own in values.items():
        for seed, value in enumerate(own):
            store.add(variant, seed, value, task, **changes)


def test_the_average_is_the_mean_over_tasks_and_its_sd_is_over_seeds(store, table):
    fill(store, "lora", {"movie": (0.8, 0.9), "opinion": (0.6, 0.64)})
    out = table()
    # Seed by seed: (80 + 60)/2 = 70 and (90 + 64)/2 = 77.
    assert out.column("average") == ["73.5 ± 4.9 (2)"]
    assert out.note("Average: ") == "the mean over the 2 tasks, ± its sd over seeds."


def test_one_seed_gives_an_average_without_spread(store, table):
    fill(store, "lora", {"movie": (0.8,), "opinion": (0.6,)})
    assert table().column("average") == ["70.00 (1)"]


def test_with_other_seeds_on_other_tasks_there_is_a_mean_of_means_without_spread(store, table):
    fill(store, "lora", {"movie": (0.8, 0.9), "opinion": (0.6,)})
    out = table()
    assert out.column("average") == ["72.50"]
    assert out.note("Average: ") == (
        "the mean over the 2 tasks; without (n) where the tasks of a row have different seeds."
    )


def test_one_task_needs_no_average_and_no_rank(store, table):
    store.add("a", 0)
    store.add("b", 0)
    out = table()
    assert out.cells[0][2] == "trainable"
    assert not [note for note in out.notes if "verage" in note or note.startswith("Rank")]


def test_a_row_without_runs_on_some_task_has_neither(store, table):
    fill(store, "a", {"movie": (0.8,), "opinion": (0.6,)})
    fill(store, "b", {"movie": (0.7,), "opinion": (0.5,)})
    fill(store, "c", {"movie": (0.9,)})
    out = table()
    assert out.column("average") == ["**70.00** (1)", "60.00 (1)", ""]
    assert out.column("rank") == ["**1.00**", "2.00", ""], "c, which is first on movie, is not counted"
    assert out.note("Rank: ").endswith("; rows without runs on every task have none.")


def test_no_row_on_every_task_is_said(store, table):
    fill(store, "a", {"movie": (0.8,)})
    fill(store, "b", {"opinion": (0.5,)})
    out = table()
    assert "average" not in out.cells[0] and "rank" not in out.cells[0]
    assert out.note("No average over tasks: ") == "no row has runs on every task."


@pytest.mark.parametrize("form", ["md", "latex", "html"])
def test_rows_that_can_not_be_compared_are_neither_averaged_nor_ranked(store, table, form):
    fill(store, "a", {"movie": (0.8,), "opinion": (0.6,)})
    fill(store, "b", {"movie": (0.8,), "opinion": (0.6,)}, data__protocol="split")
    out = table("runs", "--format", form)
    assert "No average over tasks: on movie the rows differ in protocol." in out


def test_a_metric_that_is_no_share_is_not_averaged_but_ranked(store, table):
    for variant, error in (("a", 0.5), ("b", 0.4)):
        store.add(variant, 0, 0.8, "movie")
        store.add(variant, 0, error, "ratings", metric__name="rmse", metric__higher_is_better=False)
    out = table()
    assert out.note("No average over tasks: ") == "rmse of ratings is not printed ×100."
    assert out.column("rank") == ["1.75", "**1.25**"], "1.5 each on movie, and the lower error is the better one"


GLUE = {
    "mnli": ("accuracy", 0.8, {"accuracy": 0.8, "validation_mismatched.accuracy": 0.9}),
    "mrpc": ("accuracy", 0.8, {"accuracy": 0.8, "f1": 0.9}),
    "qqp": ("accuracy", 0.8, {"accuracy": 0.8, "f1": 0.9}),
    "stsb": ("pearson", 0.8, {"pearson": 0.8, "spearman": 0.9}),
}


@pytest.mark.parametrize("task", GLUE)
def test_glue_counts_two_metrics_and_two_splits_once(store, table, task):
    name, value, metrics = GLUE[task]
    store.add("lora", 0, value, task, metric__name=name, **{f"metrics__{k}": v for k, v in metrics.items()})
    store.add("lora", 0, 0.75, "sst2")
    out = table()
    assert out.column(task) == ["80.00 (1)"], "the cell is the task's own metric"
    assert out.column("average") == ["80.00 (1)"], "(85 + 75)/2"
    assert (
        out.note("Average: ") == f"the mean over the 2 tasks; {task} counts with the mean of {' and '.join(metrics)}."
    )


def test_other_tasks_with_two_metrics_count_with_their_own(store, table):
    metrics = {"metrics__accuracy": 0.8, "metrics__f1": 0.2}
    store.add("lora", 0, 0.8, "movie", **metrics)
    store.add("lora", 0, 0.8, "boolq", **metrics)
    assert table().column("average") == ["80.00 (1)"]


def test_a_metric_that_glue_needs_and_a_run_has_not_leaves_the_average_out(store, table):
    store.add("a", 0, 0.8, "mrpc", metrics__accuracy=0.8)
    store.add("b", 0, 0.8, "mrpc", metrics__accuracy=0.8, metrics__f1=0.9)
    for variant in "ab":
        store.add(variant, 0, 0.75, "sst2")
    out = table()
    assert out.column("average") == ["", "80.00 (1)"]
    assert out.note("No average for a: ") == "GLUE averages f1, which a run on mrpc lacks."


def test_the_scores_of_runs():
    both = [
        Record("one", "demo", "lora", "t", "m", 0, metric=Metric(value=0.8), metrics={"accuracy": 0.8, "f1": 0.6}),
        Record("two", "demo", "lora", "t", "m", 1, metric=Metric(value=0.7), metrics={"accuracy": 0.7}),
    ]
    assert glue.scores("sst2", both) == [0.8, 0.7] and glue.lacking("sst2", both) == []
    assert glue.lacking("mrpc", both) == ["f1"]
    assert glue.lacking("mrpc", both[:1]) == [] and glue.scores("mrpc", both[:1]) == [pytest.approx(0.7)]


def test_ranks_are_scipys():
    draw = random.Random(0)
    for _ in range(200):
        values = [draw.choice((0.1, 0.2, 0.3, 0.4)) for _ in range(draw.randrange(1, 12))]
        assert averages.ranked(values, higher_is_better=False) == list(stats.rankdata(values))
        assert averages.ranked(values, higher_is_better=True) == list(stats.rankdata([-value for value in values]))


def test_a_rank_of_a_task_with_two_metrics_says_by_which(store, table):
    for variant, value in (("a", 0.8), ("b", 0.7)):
        for task in ("mrpc", "sst2"):
            store.add(variant, 0, value, task, metrics__accuracy=value, metrics__f1=value)
    assert table().note("Rank: ").endswith("ties share theirs; on mrpc by the metric that its column shows.")


def test_ties_share_their_ranks(store, table):
    for variant, movie, opinion in (("a", 0.9, 0.5), ("b", 0.9, 0.7), ("c", 0.8, 0.7), ("d", 0.7, 0.6)):
        fill(store, variant, {"movie": (movie,), "opinion": (opinion,)})
    assert table().column("rank") == ["2.75", "**1.50**", "2.25", "3.50"]


def test_mean_and_sd_are_those_of_the_library():
    draw = random.Random(1)
    for _ in range(100):
        values = [draw.uniform(-1, 1) for _ in range(draw.randrange(2, 9))]
        found = spread(values, fraction=True)
        assert found.mean == pytest.approx(stats.tmean(values), rel=1e-14, abs=1e-16)
        assert found.sd == pytest.approx(stats.tstd(values), rel=1e-12)


def test_csv_has_average_and_rank_in_every_line_of_a_row(store, table):
    for variant, value in (("a", 0.8), ("b", 0.7)):
        fill(store, variant, dict.fromkeys(TWO, (value, value)))
    lines = list(csv.DictReader(table("runs", "--format", "csv").splitlines()))
    found = [[line[name] for name in ("average", "average_sd", "average_n", "average_rank")] for line in lines]
    assert found == [["0.8", "0", "2", "1"]] * 2 + [["0.7", "0", "2", "2"]] * 2
