"""What weakens a comparison stands below it."""

from __future__ import annotations

import pytest

from analysis.commands import cli


def both(store, lora=None, head=None, seeds=(0, 1), task="movie"):
    """lora and head, each with what is said of it."""
    for seed in seeds:
        store.add("lora", seed, 0.8 + seed / 50, task, **(lora or {}))
        store.add("head", seed, 0.7, task, **(head or {}))


def test_a_fair_comparison_has_no_flags(store, data):
    both(store)
    problems = [note["text"] for note in data("lora", "head")["notes"] if note["problem"]]
    assert [problem.partition(",")[0] for problem in problems] == ["Not compared over test examples"]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"git__commit": "f" * 40}, "commit, 2 of 2 pairs: lora 0123456789; head ffffffffff."),
        ({"git__commit": None}, "commit, 2 of 2 pairs: lora 0123456789; head not recorded."),
        ({"git__dirty": True}, "uncommitted changes, 2 of 2 pairs: lora false; head true."),
        ({"data__protocol": "split"}, "protocol, 2 of 2 pairs: lora protocol=dev dev; head protocol=split split."),
        (
            {"metric__checkpoint": "last"},
            "checkpoint, 2 of 2 pairs: lora checkpoint=best best; head checkpoint=last last.",
        ),
        ({"model": "bert"}, "model, 2 of 2 pairs: lora model=minilm minilm; head model=bert bert."),
    ],
)
def test_sides_that_were_not_made_alike_are_flagged(store, compare, change, said):
    both(store, head=change)
    assert compare("lora", "head").bullet("The two runs of a pair differ in ") == (
        f"The two runs of a pair differ in {said}"
    )


def test_pairs_that_are_alike_may_differ_from_other_pairs(store, compare):
    both(store, seeds=(0,))
    both(store, {"git__commit": "f" * 40}, {"git__commit": "f" * 40}, seeds=(1,))
    out = compare("lora", "head")
    assert not out.has("The two runs of a pair differ")
    assert out.has("Mixed code in one comparison: commit 0123456789 (2 runs), commit ffffffffff (2 runs).")


def test_a_tree_with_uncommitted_changes_is_flagged_on_both_sides(store, compare):
    both(store, {"git__dirty": True}, {"git__dirty": True})
    assert compare("lora", "head").has("Code: commit 0123456789; 4 runs of 4 from a tree with uncommitted changes.")


def test_mixed_library_versions_are_flagged(store, compare):
    both(store, {"versions__torch": "2.13.0"}, {"versions__torch": "2.14.0"})
    assert compare("lora", "head").has("Mixed library versions in one comparison: torch 2.13.0, 2.14.0.")


@pytest.mark.parametrize(
    "lora, head, said",
    [
        (331_776, 335_000, None),
        (331_776, 335_100, "lora and head have 331.8k and 335.1k effective parameters, over 1 % apart (movie)."),
        (331_776, 0, "lora and head have 331.8k and 0 effective parameters, over 1 % apart (movie)."),
        (0, 0, None),
    ],
)
def test_unequal_budgets_are_flagged(store, compare, lora, head, said):
    both(store, {"params__effective": lora}, {"params__effective": head})
    out = compare("lora", "head")
    assert out.has("Unequal budgets: ") == bool(said)
    assert said is None or out.bullet("Unequal budgets: ") == f"Unequal budgets: {said}"


def test_tasks_with_one_kind_of_unequal_budgets_share_a_line(store, compare):
    for task in ("movie", "opinion"):
        both(store, head={"params__effective": 1000}, task=task)
    both(store, task="rte")
    assert compare("lora", "head").bullet("Unequal budgets: ").endswith("over 1 % apart (movie, opinion).")


def test_a_budget_that_is_not_recorded_is_flagged(store, compare):
    both(store, head={"params__effective": None})
    assert compare("lora", "head").has("Whether the budgets of lora and head are equal is not recorded (movie).")


def test_other_settings_are_named(store, compare):
    both(store, {"config": {"optim.lr": 0.01, "variant.alpha": 3}}, {"steps__total": 300})
    assert compare("lora", "head").bullet("Besides") == (
        "Besides the variant and what the labels say, lora and head differ in: optim.lr, steps."
    )


def test_the_checkpoint_and_split_are_named(store, compare):
    both(store)
    assert compare("lora", "head").has("Best checkpoint, chosen and reported on validation, protocol dev.")


def test_flags_of_a_csv_go_to_standard_error(store, capsys):
    both(store, head={"git__commit": "f" * 40})
    assert cli.main(["compare", "lora", "head", "runs", "--format", "csv"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("a,b,task,") and output.out.count("\n") == 2
    assert "The two runs of a pair differ in commit" in output.err
    assert "±, sd" not in output.err, "an explanation is no problem"
