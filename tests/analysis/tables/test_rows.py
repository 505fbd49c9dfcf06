"""Which runs make one row, and what the row is called."""

from __future__ import annotations

import json

import pytest

from analysis.records import runs
from analysis.tables import rows


def test_seeds_are_averaged_and_nothing_else(store, table):
    for rank, value in ((4, 0.7), (8, 0.8)):
        for seed in (0, 1):
            store.add("lora", seed, value, config={"variant.rank": rank})
    out = table()
    assert out.labels == ["lora rank=4", "lora rank=8"]
    assert out.column("movie") == ["70.00 ± 0.00 (2)", "**80.00** ± 0.00 (2)"]


def test_only_the_variant_that_differs_is_labelled(store, table):
    store.add("full", 0)
    store.add("lora", 0, config={"variant.rank": 4})
    store.add("lora", 0, config={"variant.rank": 16})
    assert table().labels == ["full", "lora rank=4", "lora rank=16"]


@pytest.mark.parametrize(
    "entry, values, expected",
    [
        ("optim.lr", (0.0001, 0.001), ["lora optim.lr=0.0001", "lora optim.lr=0.001"]),
        ("variant.rslora", (False, True), ["lora rslora=false", "lora rslora=true"]),
        ("variant.budget", (None, 64), ["lora budget=none", "lora budget=64"]),
        ("variant.targets", (["q"], ["q", "v"]), ['lora targets=\\["q","v"\\]', 'lora targets=\\["q"\\]']),
        ("variant.init", ("8", 8), ["lora init=8", 'lora init="8"']),
        ("variant.alpha", (8, 16.0), ["lora alpha=8", "lora alpha=16"]),
        ("task.limit", (100, 200), ["lora task.limit=100", "lora task.limit=200"]),
        ("model.dtype", ("bfloat16", "float32"), ["lora model.dtype=bfloat16", "lora model.dtype=float32"]),
    ],
)
def test_a_setting_that_differs_within_a_cell_makes_rows(store, table, entry, values, expected):
    for value in values:
        store.add("lora", 0, config={entry: value})
    assert table().labels == expected


def test_eight_and_eight_point_zero_are_one_setting(store, table):
    store.add("lora", 0, config={"variant.alpha": 8})
    store.add("lora", 1, config={"variant.alpha": 8.0})
    assert table().labels == ["lora"]


def test_long_values_are_cut_and_still_told_apart(store, table):
    for last in "ab":
        store.add("lora", 0, config={"variant.note": "x" * 200 + last})
    labels = table().labels
    assert len(set(labels)) == 2
    assert all(label.startswith("lora note=" + "x" * 33 + "…") and len(label) == 50 for label in labels)


def test_two_settings_stand_side_by_side(store, table):
    for rank in (4, 8):
        for lr in (0.001, 0.01):
            store.add("lora", 0, config={"variant.rank": rank, "optim.lr": lr})
    assert table().labels == [
        "lora rank=4 optim.lr=0.001",
        "lora rank=4 optim.lr=0.01",
        "lora rank=8 optim.lr=0.001",
        "lora rank=8 optim.lr=0.01",
    ]


def test_what_follows_the_rank_is_named_below(store, table):
    for rank in (4, 8):
        store.add("lora", 0, config={"variant.rank": rank, "variant.alpha": 2 * rank})
    out = table()
    assert out.labels == ["lora rank=4", "lora rank=8"]
    assert out.note("Besides the settings in their labels") == ", the rows of lora differ in: alpha."


def test_what_was_typed_gives_the_name(store, table):
    for budget in (100, 200):
        store.add(
            "lora",
            0,
            config={"variant.budget": budget, "variant.rank": budget // 10},
            overrides=[f"+variant.budget={budget}", "seed=0"],
        )
    assert table().labels == ["lora budget=100", "lora budget=200"]


def test_one_setting_that_says_it_all_is_enough(store, table):
    store.add("peft", 0, config={"variant.method": "ia3", "variant.rank": None})
    store.add("peft", 0, config={"variant.method": "lora", "variant.options.r": 8, "variant.rank": None})
    store.add("peft", 0, config={"variant.method": "adalora", "variant.options.init_r": 12})
    assert table().labels == ["peft method=adalora", "peft method=ia3", "peft method=lora"]


def test_a_setting_of_the_task_makes_no_rows(store, table):
    store.add("lora", 0, task="movie", config={"task.metric": "accuracy", "task.labels": 2})
    store.add("lora", 0, task="opinion", config={"task.metric": "pearson", "task.labels": 1})
    out = table()
    assert out.labels == ["lora"]
    assert not [note for note in out.notes if "differ" in note]


def test_a_setting_tuned_per_task_makes_no_rows_but_is_named(store, table):
    store.add("lora", 0, task="movie", config={"optim.lr": 0.001})
    store.add("lora", 0, task="opinion", config={"optim.lr": 0.01})
    store.add("full", 0, task="movie")
    out = table()
    assert out.labels == ["full", "lora"]
    assert out.note("Settings that differ between the tasks of a row: ") == "optim.lr (lora)."


def test_a_rank_without_runs_on_a_task_leaves_a_blank(store, table):
    store.add("lora", 0, task="movie", config={"variant.rank": 4})
    store.add("lora", 0, task="movie", config={"variant.rank": 8})
    store.add("lora", 0, task="opinion", config={"variant.rank": 8})
    out = table()
    assert out.column("opinion") == ["", "80.00 (1)"]
    assert out.note("Blank on opinion, no run: ") == "lora rank=4"


def test_models_are_rows_and_their_settings_are_not(store, table):
    for model, hidden in (("minilm", 384), ("bert-base", 768)):
        for variant in ("lora", "full"):
            store.add(variant, 0, model=model, config={"model.hidden": hidden, "model.revision": "main"})
    out = table()
    assert out.labels == [
        "full model=bert-base",
        "full model=minilm",
        "lora model=bert-base",
        "lora model=minilm",
    ]
    assert not [note for note in out.notes if "differ" in note]


def test_one_model_is_not_worth_a_label(store, table):
    store.add("lora", 0, model="bert-base")
    assert table().labels == ["lora"]


def test_a_seed_under_another_name_is_a_seed(store, table):
    for seed in (3, 4):
        store.add("lora", seed, config={"data.seed": seed, "data.split_seed": 0})
    assert table().column("movie") == ["80.00 ± 0.00 (2)"]


def test_a_seed_of_its_own_is_a_setting(store, table):
    for seed in (0, 1):
        for data_seed in (0, 1):
            store.add("lora", seed, config={"data.seed": data_seed})
    assert table().labels == ["lora data.seed=0", "lora data.seed=1"]


def test_whether_a_seed_is_the_runs_is_asked_of_each_variant(store, table):
    for seed in range(3):
        store.add("svft", seed, config={"variant.seed": seed})
        store.add("sparse", seed, config={"variant.seed": 0})
    assert table().labels == ["sparse", "svft"] and table().column("movie") == ["**80.00** ± 0.00 (3)"] * 2


def test_a_variants_own_seed_is_called_so(store, table):
    for seed in range(2):
        for own in range(2):
            store.add("svft", seed, config={"variant.seed": own})
    assert table().labels == ["svft variant.seed=0", "svft variant.seed=1"]


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"metric__name": "f1"}, ["lora metric=accuracy", "lora metric=f1"]),
        ({"metric__checkpoint": "last"}, ["lora checkpoint=best", "lora checkpoint=last"]),
        ({"metric__split": "test"}, ["lora split=test", "lora split=validation"]),
        ({"data__protocol": "split"}, ["lora protocol=dev", "lora protocol=split"]),
        ({"steps__total": 200}, ["lora steps=100", "lora steps=200"]),
    ],
)
def test_what_runs_report_is_not_mixed_either(store, table, change, expected):
    store.add("lora", 0)
    store.add("lora", 1, **change)
    assert table().labels == expected


def test_a_protocol_that_the_config_explains_needs_no_second_label(store, table):
    for protocol in ("dev", "split"):
        store.add("lora", 0, config={"eval.protocol": protocol}, data__protocol=protocol)
    assert table().labels == ["lora eval.protocol=dev", "lora eval.protocol=split"]


def test_rows_of_one_column_say_in_which_protocol_they_differ(store, table):
    store.add("full", 0, metric__checkpoint="last")
    store.add("lora", 0, metric__checkpoint="best")
    out = table()
    assert out.labels == ["full checkpoint=last", "lora checkpoint=best"]
    assert out.cells[0][1] == "movie accuracy"
    assert "**" not in out, "numbers of two kinds have no best"
    assert out.note("No best is marked for movie: ") == "the rows differ in checkpoint."


def test_steps_may_differ_between_variants_but_are_named(store, table):
    store.add("full", 0, steps__total=300)
    store.add("lora", 0)
    out = table()
    assert out.labels == ["full", "lora"]
    assert out.note("Settings that differ between the rows of a column, besides the variant: ") == "steps."


def test_a_failed_run_joins_the_row_that_it_would_have_had(store, table):
    store.add("lora", 0, config={"variant.rank": 4})
    store.add("lora", 1, config={"variant.rank": 4}, error="no memory")
    store.add("lora", 0, config={"variant.rank": 8}, error="no memory")
    out = table()
    assert out.labels == ["lora rank=4", "lora rank=8"]
    assert out.column("movie") == ["80.00 (1)", ""]
    assert [note for note in out.notes if note.startswith(("Failed", "Blank"))] == [
        "Failed: lora rank=4 on movie, seed 1: no memory",
        "Failed: lora rank=8 on movie, seed 0: no memory",
        "Blank on movie, 1 run failed: lora rank=8",
    ]


def test_a_run_that_failed_before_it_had_a_config_makes_no_labels(store, table):
    store.add("lora", 0)
    store.without_config(store.add("lora", 1, error="no such task"))
    out = table()
    assert out.labels == ["lora"]
    assert out.note("Failed: ") == "lora on movie, seed 1: no such task"


def test_rows_are_in_natural_order(store, table):
    for variant in ("lora10", "Lora2", "adalora", "lora1"):
        store.add(variant, 0)
    assert table().labels == ["adalora", "lora1", "Lora2", "lora10"]


def test_values_are_in_the_order_of_their_size(store, table):
    for lr in (0.01, 1e-05, 0.002, 2):
        store.add("lora", 0, config={"optim.lr": lr})
    assert table().labels == [f"lora optim.lr={lr}" for lr in ("1e-05", "0.002", "0.01", "2")]


def test_tasks_are_in_the_order_of_the_alphabet(store, table):
    for task in ("sst2", "boolq", "movie"):
        store.add("lora", 0, task=task)
    assert [name.split()[0] for name in table().cells[0][1:4]] == ["boolq", "movie", "sst2"]


def test_however_its_file_is_written_a_record_makes_the_same_rows(store):
    for rank in (4, 8):
        for seed in range(4):
            store.add("lora", seed, config={"variant.rank": rank, "data.seed": seed, "data.split_seed": seed // 2})
    labels = [row.label for row in rows.build(runs.read(["runs"])).rows]
    for path in sorted(store.root.glob("runs/*/record.json"))[::2]:
        path.write_text(json.dumps(json.loads(path.read_text())))
    found = rows.build(runs.read(["runs"])).rows
    assert labels == [row.label for row in found]
    assert labels == [f"lora rank={rank} data.split_seed={seed}" for rank in (4, 8) for seed in (0, 1)]
    assert [[run.record.seed for run in row.runs["movie"]] for row in found] == [[0, 1], [2, 3]] * 2


def test_a_seed_that_is_not_always_the_runs_is_a_setting_of_every_run(store):
    for seed in range(2):
        store.add("lora", seed, config={"data.seed": seed})
        store.add("lora", 10 + seed, config={"data.seed": 5})
    found = rows.build(runs.read(["runs"])).rows
    assert [row.label for row in found] == [f"lora data.seed={seed}" for seed in (0, 1, 5)]
    assert [len(row.runs["movie"]) for row in found] == [1, 1, 2]
