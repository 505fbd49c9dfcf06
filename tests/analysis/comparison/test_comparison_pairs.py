"""Which runs are compared with which."""

from __future__ import annotations

import pytest


def test_only_seeds_in_both_are_compared_and_the_others_named(store, compare, lines):
    for seed in (0, 1, 2, 5):
        store.add("lora", seed, 0.8 + seed / 100)
    for seed in (1, 2, 3):
        store.add("head", seed, 0.7)
    (line,) = [line for line in lines("lora", "head") if line["level"] == "seeds"]
    assert (line["seeds"], line["n"], float(line["mean_a"])) == ("1 2", "2", pytest.approx(0.815))
    out = compare("lora", "head")
    assert out.bullet("Unpaired") == ("Unpaired, not used, lora and head on movie: lora seeds 0, 5; head seed 3.")


def test_without_a_common_seed_nothing_is_compared(store, compare, data):
    store.add("lora", 0)
    store.add("head", 1)
    out = compare("lora", "head")
    assert out.bullet("Not compared") == (
        "Not compared, lora and head on movie: no seed is on both sides exactly once."
    )
    assert out.has("No two runs share a seed: nothing is compared.")
    assert out.has("Unpaired, not used, lora and head on movie: lora seed 0; head seed 1.")
    found = data("lora", "head")
    assert found["verdicts"] == found["tests"] == []
    assert found["not_compared"][0]["reason"] == "no seed is on both sides exactly once"


def test_a_seed_that_is_there_twice_is_not_used(store, compare, lines):
    for seed in (0, 1, 2):
        store.add("lora", seed, 0.8 + seed / 100)
        store.add("head", seed, 0.7)
    store.add("lora", 1, 0.9, config={"variant.rank": 8.0})  # the same setting, spelt as another run's
    assert [line["seeds"] for line in lines("lora", "head") if line["level"] == "seeds"] == ["0 2"]
    assert compare("lora", "head").has("More than once on a side, not used, lora and head on movie: seed 1.")


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"metric__name": "f1"}, "metric accuracy and f1"),
        ({"metric__split": "test"}, "split validation and test"),
        ({"metric__higher_is_better": False}, "higher_is_better true and false"),
    ],
)
def test_numbers_of_two_kinds_are_not_subtracted(store, compare, change, reason):
    for seed in (0, 1):
        store.add("lora", seed)
        store.add("head", seed, **change)
    out = compare("lora", "head")
    assert out.bullet("Not compared, ").endswith(f" on movie: {reason}.")
    assert "Over seeds:" not in out


def test_tasks_that_one_side_lacks_are_named(store, compare):
    for seed in (0, 1):
        store.add("lora", seed)
        store.add("head", seed)
        store.add("lora", seed, task="opinion")
    store.add("head", 0, task="opinion", error="no memory")
    store.add("sora", 0, task="boolq")
    out = compare("lora", "head")
    assert out.has("Not compared, lora and head on opinion: no run of head is done.")
    assert out.has("Failed: head on opinion, seed 0: no memory")
    assert "boolq" not in out, "neither side ever ran on it"


def test_a_side_that_always_failed_is_no_error(store, compare):
    store.add("lora", 0)
    store.add("sora", 0, error="no memory")
    out = compare("lora", "sora")
    assert out.has("Not compared, lora and sora on movie: no run of sora is done.")
    assert out.has("Failed: sora on movie, seed 0: no memory")


def test_records_that_can_not_be_trusted_are_listed(store, compare):
    store.add("lora", 0)
    store.add("head", 0)
    path = store.raw("bad", "{}")
    reason = "version: None, allowed: a whole number ≥ 1"
    assert compare("lora", "head").bullets[-1] == f"Not used, can't be trusted: {path}: {reason}"
