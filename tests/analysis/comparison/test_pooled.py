"""Two rows over tasks and seeds at once."""

from __future__ import annotations

import pytest

from analysis.comparison import outcome, pooled, sides
from analysis.records import runs
from analysis.tables import rows


def build(baseline: str = "lora") -> list[pooled.Pooled]:
    all_rows = rows.build(runs.read(["runs"]))
    compared = sides.against(all_rows.rows, baseline)
    return pooled.build(compared, outcome.compute(compared, all_rows.tasks, 100))


def add(store, variant, task, values, **changes):
    for seed, value in enumerate(values):
        store.add(variant, seed, value, task, **changes)


def test_differences_are_paired_by_task_and_seed_in_points(store):
    add(store, "lora", "movie", [0.70, 0.72])
    add(store, "sora", "movie", [0.73, 0.73])
    add(store, "lora", "opinion", [0.50, 0.60])
    add(store, "sora", "opinion", [0.52, 0.64])
    (one,) = build()
    assert (one.a, one.b, one.tasks, one.over.n) == ("sora", "lora", ("movie", "opinion"), 4)
    assert one.over.difference == pytest.approx((3 + 1 + 2 + 4) / 4)
    assert one.over.sd == pytest.approx((5 / 3) ** 0.5)
    assert one.over.p_flip == pytest.approx(2 / 2**4)


def test_a_metric_of_which_less_is_better_counts_the_other_way(store):
    lower = {"metric__name": "error_rate", "metric__higher_is_better": False, "metric__percent": True}
    add(store, "lora", "movie", [0.30, 0.28], **lower)
    add(store, "sora", "movie", [0.27, 0.27], **lower)
    add(store, "lora", "opinion", [0.50, 0.60])
    add(store, "sora", "opinion", [0.52, 0.64])
    (one,) = build()
    assert one.over.difference == pytest.approx((3 + 1 + 2 + 4) / 4)


def test_tasks_weigh_the_same_by_the_seeds_that_all_have(store):
    add(store, "lora", "movie", [0.7, 0.7, 0.7, 0.7])
    add(store, "sora", "movie", [0.8, 0.8, 0.9, 0.9])
    add(store, "lora", "opinion", [0.5, 0.5])
    add(store, "sora", "opinion", [0.4, 0.45])
    (one,) = build()
    assert one.over.n == 4 and one.over.difference == pytest.approx((10 + 10 - 10 - 5) / 4)


@pytest.mark.parametrize("what", ["one task", "one seed", "a metric in units of its own"])
def test_where_there_is_nothing_to_pool_there_is_none(store, what):
    units = {"metric__name": "perplexity", "metric__higher_is_better": False, "metric__percent": False}
    for variant in ("lora", "sora"):
        add(store, variant, "movie", [0.7, 0.8][: 1 if what == "one seed" else 2])
        if what != "one task":
            add(store, variant, "opinion", [7.0, 8.0], **(units if what.startswith("a metric") else {}))
    assert build() == []


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([0.80, 0.801, 0.802], "better"),
        ([0.60, 0.601, 0.602], "worse"),
        ([0.700, 0.701, 0.699], "equal within 1"),
        ([0.6, 0.9, 0.7], "undecided"),
    ],
)
def test_the_verdict(store, values, word):
    for task in ("movie", "opinion"):
        add(store, "lora", task, [0.70, 0.70, 0.70])
        add(store, "sora", task, values)
    assert [one.word for one in build()] == [word]


def test_decided_pairs_are_sentences_and_the_others_are_listed_with_what_could_have_been_shown(store):
    for task in ("movie", "opinion"):
        add(store, "lora", task, [0.70, 0.70, 0.70])
        add(store, "sora", task, [0.80, 0.801, 0.802])
        add(store, "full", task, [0.6, 0.9, 0.7])
    found = sorted(build(), key=lambda one: one.word)
    decided, number = pooled.sentences(found)
    assert decided.startswith(
        "Over 2 tasks and 6 pairs of a task and a seed sora is better than lora: 10.10 points (95 %"
    )
    (smallest,) = [one.smallest for one in found if one.word == "undecided"]
    assert number == (
        "Over tasks and seeds together 1 of 2 comparisons are undecided: full;"
        f" they could have shown {smallest:.1f} points or more."
    )


def test_holm_corrects_for_all_rows_that_are_compared(store):
    for task in ("movie", "opinion"):
        add(store, "lora", task, [0.70, 0.71, 0.70])
        add(store, "sora", task, [0.71, 0.71, 0.74])
        add(store, "full", task, [0.72, 0.70, 0.71])
    first, second = sorted(build(), key=lambda one: one.over.p or 1)
    assert first.over.p and first.t_holm == pytest.approx(2 * first.over.p)
    assert second.t_holm == pytest.approx(max(first.t_holm, second.over.p))
