"""Two runs over the same test examples, from their predictions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

LABELS = [0, 1] * 20


def wrong(*places: int) -> list[int]:
    return [1 - label if place in places else label for place, label in enumerate(LABELS)]


def test_mcnemar_counts_what_one_side_alone_gets_right(study, lines):
    study.scored("lora", 0, LABELS, wrong(0, 1))
    study.scored("head", 0, LABELS, wrong(0, 2, 3, 4, 5, 6, 7))
    _, mean, one = lines("lora", "head")
    assert (mean["level"], mean["n"], mean["seeds"]) == ("examples", "40", "0")
    assert (one["test"], one["a_alone"], one["b_alone"]) == ("McNemar", "6", "1")
    assert float(one["p"]) == pytest.approx(2 * (1 + 7) / 2**7)
    assert float(one["difference"]) == pytest.approx(5 / 40)


def test_the_order_of_the_examples_does_not_matter(study, lines):
    ids = [f"e{number}" for number in range(40)]
    study.scored("lora", 0, LABELS, wrong(0, 1), ids=ids)
    turned = wrong(0, 2, 3)[::-1]
    study.scored("head", 0, LABELS[::-1], turned, ids=ids[::-1])
    assert [line["a_alone"] for line in lines("lora", "head")][-1] == "2"


@pytest.mark.parametrize(
    "change, reason",
    [
        (
            {"ids": [f"movie-{number}" for number in range(1, 41)]},
            "other examples: 1 of 40 and 1 of 40 have no partner",
        ),
        ({"labels": [1, 1, *LABELS[2:]]}, "other labels: on 1 of 40 examples"),
        ({"ids": ["a", *(f"{n}" for n in range(38)), "a"]}, "1 ids are there more than once"),
        ({"value": 0.5}, "accuracy is 0.95, the record says 0.5"),
        ({"predictions": [float("nan")] * 40, "value": 0.5}, "predictions that are not finite numbers"),
        ({"labels": [0], "predictions": [0]}, "1 examples"),
    ],
)
def test_predictions_that_can_not_be_compared_say_why(study, compare, change, reason):
    study.scored("lora", 0, LABELS, wrong(0, 2))
    study.scored("head", 0, **{"labels": LABELS, "predictions": wrong(0, 1), **change})
    out = compare("lora", "head")
    assert "Over test examples:\n" not in out
    note = out.bullet("Not compared over test examples, ")
    assert reason in note.replace("\\", "")


def test_runs_without_predictions_are_one_line(store, compare):
    for seed in (0, 1, 2):
        for task in ("movie", "opinion"):
            store.add("lora", seed, 0.8 + seed / 50, task)
            store.add("head", seed, 0.7, task)
            store.add("sora", seed, 0.7, task)
    out = compare("--all", "lora")
    notes = [line for line in out.bullets if "over test examples" in line]
    assert notes == [
        "Not compared over test examples, head, sora on movie seeds 0, 1, 2; opinion seeds 0, 1, 2: "
        "no predictions.parquet in its folder."
    ]


@pytest.mark.parametrize("content", [b"", b"PAR1 and more", b"PAR1" + bytes(50) + b"PAR1"])
def test_a_broken_file_is_named(study, compare, content):
    study.scored("lora", 0, LABELS, LABELS)
    folder = study.scored("head", 0, LABELS, wrong(0))
    (folder / "predictions.parquet").write_bytes(content)
    assert f", head on movie seed 0: {folder}/predictions.parquet: " in compare("lora", "head")


@pytest.mark.parametrize("change, reason", [({"prediction": None}, "prediction"), ({"split": "test"}, "0 examples")])
def test_a_file_with_other_content_is_named(study, compare, change, reason):
    study.scored("lora", 0, LABELS, LABELS)
    path = study.scored("head", 0, LABELS, wrong(0)) / "predictions.parquet"
    frame = pd.read_parquet(path).assign(**change)
    frame.drop(columns=[name for name, value in change.items() if value is None]).to_parquet(path)
    note = compare("lora", "head").bullet("Not compared over test examples")
    assert f"head on movie seed 0: {path}" in note and reason in note


def test_a_metric_that_is_not_known_here_is_named(study, compare):
    for variant in ("lora", "head"):
        study.scored(variant, 0, LABELS, LABELS, metric="my_score", value=0.5)
    assert "the metric 'my_score' can't be computed from predictions" in compare("lora", "head")


def test_a_seed_without_predictions_leaves_the_others(study, compare, lines):
    for seed in (0, 1, 2):
        study.scored("lora", seed, LABELS, wrong(seed))
        folder = study.scored("head", seed, LABELS, wrong(0, 1, 2, 3 + seed))
    (folder / "predictions.parquet").unlink()
    levels = [(line["level"], line["seeds"]) for line in lines("lora", "head")]
    assert levels == [
        *(("seeds", "0 1 2"), ("examples", "0 1")),
        *(("examples of one seed", "0"), ("examples of one seed", "1")),
    ]
    assert compare("lora", "head").has("Not compared over test examples, head on movie seed 2: no predictions")


def test_seeds_on_other_examples_have_no_mean(study, compare, lines):
    for seed in (0, 1):
        ids = [f"{seed}-{number}" for number in range(40)]
        study.scored("lora", seed, LABELS, wrong(0), ids=ids)
        study.scored("head", seed, LABELS, wrong(1, 2, 3 + seed), ids=ids)
    assert [line["level"] for line in lines("lora", "head")] == ["seeds", *["examples of one seed"] * 2]
    assert compare("lora", "head").has("No mean over seeds of test examples, lora and head on movie: each seed has")


@pytest.mark.parametrize("metric", ["f1", "f1_macro", "matthews"])
def test_mcnemar_is_for_accuracy_alone(study, lines, compare, metric):
    study.scored("lora", 0, LABELS, wrong(0), metric=metric)
    study.scored("head", 0, LABELS, wrong(1, 2, 3), metric=metric)
    assert [line["test"] for line in lines("lora", "head")] == ["", "", ""]
    assert "McNemar by seed: " not in compare("lora", "head")


@pytest.mark.parametrize("metric", ["pearson", "spearman", "rmse"])
def test_regressions_have_an_interval(study, lines, metric):
    rng = np.random.default_rng(0)
    labels = rng.normal(size=60)
    better = {"metric__higher_is_better": metric != "rmse"}
    a, b = labels + rng.normal(scale=0.2, size=60), labels + rng.normal(scale=1.0, size=60)
    study.scored("lora", 0, labels, a.astype(np.float32), metric=metric, **better)
    study.scored("head", 0, labels, b.astype(np.float32), metric=metric, **better)
    line = lines("lora", "head")[1]
    low, high = float(line["low"]), float(line["high"])
    assert low < float(line["difference"]) < high
    assert (low > 0) if metric != "rmse" else (high < 0)


def test_more_resamples_are_said_to_be_more(study, compare):
    study.scored("lora", 0, LABELS, wrong(0))
    study.scored("head", 0, LABELS, wrong(1, 2))
    assert "95 % percentile bootstrap, 1,500 resamples" in compare("lora", "head", resamples=1500)
