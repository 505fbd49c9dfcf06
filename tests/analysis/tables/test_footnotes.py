"""The lines below a table."""

from __future__ import annotations

import pytest

from trainer import code_hash


def test_with_one_run_per_cell_nothing_is_said_about_a_spread(store, table):
    store.add("lora", 0)
    out = table()
    assert "±" not in out
    assert out.notes[0] == ("Cells: value (n) with n = 1 run each: nothing is known about the spread over seeds.")


@pytest.mark.parametrize(
    "checkpoint, protocol, header, note",
    [
        (
            "best",
            "dev",
            "best on validation",
            "Best checkpoint, chosen and reported on validation, protocol dev.",
        ),
        (
            "best",
            "split",
            "best on a part of train",
            "Best checkpoint, chosen on a part of train, reported on validation, protocol split.",
        ),
        ("last", "dev", "last", "Last checkpoint, reported on validation, protocol dev."),
        ("best", None, "best", "Best checkpoint, reported on validation, protocol not recorded."),
    ],
)
def test_header_and_note_name_checkpoint_and_split(store, table, checkpoint, protocol, header, note):
    store.add("lora", 0, metric__checkpoint=checkpoint, data__protocol=protocol)
    out = table()
    assert out.cells[0][1] == f"movie accuracy, {header}"
    assert note in out.notes


def test_tasks_with_other_checkpoints_have_a_line_each(store, table):
    store.add("lora", 0, task="movie")
    store.add("lora", 0, task="opinion", metric__checkpoint="last")
    assert [note for note in table().notes if "checkpoint" in note] == [
        "Best checkpoint, chosen and reported on validation, protocol dev (movie).",
        "Last checkpoint, reported on validation, protocol dev (opinion).",
    ]


def test_mixed_commits_and_dirty_trees_are_flagged(store, table):
    store.add("lora", 0, git__commit="a" * 40)
    store.add("lora", 1, git__commit="b" * 40, git__dirty=True)
    store.add("lora", 2, git__commit="b" * 40)
    assert table().note("Mixed code in one comparison: ") == (
        "commit aaaaaaaaaa (1 run: lora on movie), commit bbbbbbbbbb (2 runs); "
        "1 run of 3 from a tree with uncommitted changes."
    )


def test_mixed_code_names_the_cells_that_have_the_rarer_commit(store, table):
    for task in ("movie", "opinion"):
        for rank in (4, 8):
            store.add("lora", 0, task=task, config={"variant.rank": rank}, git__commit="a" * 40)
    store.add("lora", 1, task="movie", config={"variant.rank": 8}, git__commit="b" * 40)
    store.add("sora", 0, task="opinion", git__commit="b" * 40)
    assert table().note("Mixed code in one comparison: ") == (
        "commit aaaaaaaaaa (4 runs), commit bbbbbbbbbb (2 runs: lora rank=8 on movie, sora on opinion)."
    )


def test_two_codes_of_one_method_are_flagged_with_their_cells(store, table):
    for seed, code in enumerate(("a" * 16, "a" * 16, "b" * 16)):
        store.add("own", seed, code__variant=code)
    store.add("own", 0, task="opinion", code__variant="a" * 16)
    store.add("lora", 0, code__variant="c" * 16)
    out = table()
    assert out.note("Mixed code of own in one comparison: ") == (
        "code aaaaaaaaaa (3 runs), code bbbbbbbbbb (1 run: own on movie)."
    )
    assert not [note for note in out.notes if note.startswith("Mixed code of lora")]


@pytest.mark.parametrize("field", ["task.kind", "task.source._target_", "optim.optimizer._target_"])
def test_two_codes_of_a_users_other_class_are_flagged_with_their_cells(store, table, field):
    name = field.removesuffix("._target_")
    for seed, code in enumerate(("a" * 16, "a" * 16, "b" * 16)):
        store.add("lora", seed, config={field: "mine.Own"}, **{f"code__{name}": code})
    store.add("lora", 0, task="opinion", config={field: "mine.Other"}, **{f"code__{name}": "d" * 16})
    assert table().note("Mixed code of mine.Own in one comparison: ") == (
        "code aaaaaaaaaa (2 runs), code bbbbbbbbbb (1 run: lora on movie)."
    )


def test_a_run_that_does_not_say_its_methods_code_is_told_from_those_that_do(store, table):
    store.add("own", 0, code__variant="a" * 16)
    store.add("own", 1)
    assert table().note("Mixed code of own in one comparison: ") == (
        "code not recorded (1 run), code aaaaaaaaaa (1 run: own on movie)."
    )


def test_an_earlier_hash_of_the_same_code_is_not_mixed_code(store, table, tmp_path, monkeypatch):
    (tmp_path / "mine_alone.py").write_text("class Mine:\n    x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    target = "mine_alone.Mine"
    for seed, code in enumerate(("8856e50ff56ad601", code_hash.of(target))):  # as recorded before and today
        store.add("mine", seed, config={"variant._target_": target}, code__variant=code)
    assert not [note for note in table().notes if note.startswith("Mixed code")]
    store.add("mine", 2, config={"variant._target_": target}, code__variant="a" * 16)
    note = table().note("Mixed code of mine in one comparison: ")
    assert "code aaaaaaaaaa (1 run: mine on movie)" in note and "(2 runs)" in note


def test_a_dirty_tree_alone_is_flagged(store, table):
    store.add("lora", 0, git__dirty=True)
    assert table().note("Code: ") == "commit 0123456789; 1 run of 1 from a tree with uncommitted changes."


def test_a_run_without_a_commit_says_so(store, table):
    store.add("lora", 0, git__commit=None, git__dirty=None)
    assert table().note("Code: ") == "commit not recorded."


def test_mixed_libraries_and_machines_are_flagged(store, table):
    store.add("lora", 0, versions__torch="2.13.0", versions__python="3.11.7", hardware__cpus=2)
    store.add("lora", 1, versions__torch="2.14.0", versions__python="3.11.7", hardware__cpus=8)
    out = table()
    assert out.note("Mixed library versions in one comparison: ") == "torch 2.13.0, 2.14.0."
    assert out.note("Mixed hardware in one comparison: ") == "cpus 2, 8."


def test_settings_that_differ_between_rows_are_named(store, table):
    store.add("full", 0, config={"optim.lr": 2e-5, "data.limit": 1000})
    store.add("lora", 0, config={"variant.alpha": 3})
    assert table().note("Settings that differ between the rows of a column, besides the variant: ") == (
        "data.limit, optim.lr."
    )


def test_failed_runs_with_one_error_share_a_line(store, table):
    for seed in (0, 1, 10):
        store.add("lora", seed, error="loss is not finite")
    store.add("lora", 2, error="no memory")
    failed = [note for note in table().notes if note.startswith("Failed")]
    assert sorted(failed) == [
        "Failed: lora on movie, seed 2: no memory",
        "Failed: lora on movie, seeds 0, 1, 10: loss is not finite",
    ]


@pytest.mark.parametrize(
    "error, expected",
    [
        ("one\n  two\n", "one two"),
        ("Traceback (most recent call last):\n  File x\nValueError: rank 0", "ValueError: rank 0"),
        ("x" * 1000, "x" * 299 + "…"),
        ("\n", "no error recorded"),
        ("a\x00b", "a b"),
    ],
)
def test_an_error_is_one_line(store, table, error, expected):
    store.add("lora", 0, error=error)
    assert table().note("Failed: ") == f"lora on movie, seed 0: {expected}"


def test_a_seed_that_counts_twice_is_flagged(store, table):
    # Another run_id with the same settings, one of them spelt in another way.
    store.add("lora", 0)
    store.add("lora", 0, config={"variant.rank": 8.0})
    out = table()
    assert out.column("movie") == ["80.00 ± 0.00 (2)"]
    assert out.note("Seed 0 more than once in ") == "lora on movie."


def test_long_lists_are_cut_with_their_number(store, table):
    for seed in range(12):
        store.add("lora", seed, under="one")
        store.add("lora", seed, under="two")
    note = table("one", "two").note("Counted once: ")
    assert note.startswith("12 runs that were found in more than one place: ")
    assert note.endswith(" and 2 more.")


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"params__effective": 100_000}, True),
        ({"params__adapter_end": 200_000}, True),
        ({"params__adapter_end": 331_776}, False),
        ({"params__effective": 100_000, "metric__checkpoint": "last"}, False),
    ],
)
def test_fewer_evaluations_may_compete_where_a_method_changes_its_size(store, table, changes, named):
    store.add("lora", 0, **changes)
    notes = [note for note in table().notes if note.startswith("The best checkpoint is chosen among ")]
    assert notes == named * [
        "The best checkpoint is chosen among models in their final form; lora changed in size while training, so "
        "that fewer evaluations may have competed than for the other rows."
    ]


def test_an_f1_of_one_class_says_of_which(store, table):
    store.add("lora", 0, metric__name="f1", metric__positive="real")
    assert table().note("F1 on ") == "movie is that of class 'real'."


def test_f1s_of_different_classes_are_never_averaged_nor_compared(store, table):
    store.add("lora", 0, metric__name="f1", metric__positive="real")
    store.add("lora", 1, metric__name="f1", metric__positive="fake")
    out = table()
    assert out.labels == ["lora positive=fake", "lora positive=real"]
    assert "No best is marked for movie: the rows differ in positive." in out.notes
