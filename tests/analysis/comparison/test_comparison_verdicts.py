"""What is said of two rows, and when."""

from __future__ import annotations

import pytest

CLEAR = {0: 170, 1: 172, 2: 171, 3: 174, 4: 169}  # examples right of 200, by seed


def rows(study, a, b, task="movie", **changes):
    """lora and head with so many right, by seed."""
    for seed, right in a.items():
        study.right("lora", seed, right, task, **changes)
    for seed, right in b.items():
        study.right("head", seed, right, task, **changes)


def shifted(by: list[int]) -> dict[int, int]:
    return {seed: right - less for (seed, right), less in zip(CLEAR.items(), by, strict=False)}


def values(store, a, b, task="movie", **changes):
    """The same without predictions."""
    for seed, value in enumerate(a):
        store.add("lora", seed, value, task, **changes)
    for seed, value in enumerate(b):
        store.add("head", seed, value, task, **changes)


def test_better_over_seeds_and_over_examples(study, compare, data):
    rows(study, CLEAR, shifted([30, 32, 28, 33, 29]))
    assert compare("lora", "head").bullets[0] == (
        "lora is better than head on movie by 15.2 ± 1.0 points (n=5; paired-t 95 % interval 13.9 to 16.5; "
        "Holm p 5e-06); over test examples too (bootstrap 11.9 to 19.2)."
    )
    (verdict,) = data("lora", "head")["verdicts"]
    assert (verdict["word"], verdict["examples_agree"]) == ("better", True)


def test_the_sentence_is_about_the_better_one_whatever_the_order(study, compare, data):
    rows(study, CLEAR, shifted([30, 32, 28, 33, 29]))
    assert compare("head", "lora").bullets[0] == compare("lora", "head").bullets[0]
    (verdict,) = data("head", "lora")["verdicts"]
    assert (verdict["word"], verdict["examples_agree"]) == ("worse", True)


def test_better_over_seeds_but_for_these_examples_only(study, compare, data):
    rows(study, CLEAR, shifted([3, 4, 3, 4, 3]))
    assert compare("lora", "head").bullets[0] == (
        "lora is better than head on movie by 1.70 ± 0.27 points (n=5; paired-t 95 % interval 1.36 to 2.04; "
        "Holm p 0.0002); on these test examples: over fresh ones the data don't say (bootstrap -1.50 to 5.01)."
    )
    assert data("lora", "head")["verdicts"][0]["examples_agree"] is False


def test_where_the_data_do_not_say(study, compare, data):
    rows(study, CLEAR, shifted([10, -8, 12, -6, 3]))
    assert compare("lora", "head").bullets[0] == (
        "On movie the data don't say: lora − head = 1.1 ± 4.5 points "
        "(n=5; paired-t 95 % interval -4.5 to 6.7; Holm p 0.6162); "
        "5 seeds with this spread could have shown 5.6 or more."
    )
    assert data("lora", "head")["verdicts"][0]["word"] == "undecided"


def test_better_alone_but_not_among_many_tests(store, compare):
    values(store, [0.80, 0.82, 0.84], [0.79, 0.80, 0.81])
    alone = compare("lora", "head").bullets[0]
    assert alone.startswith("On movie the data don't say") and "leaves 0 out" not in alone
    values(store, [0.80, 0.82, 0.84], [0.78, 0.798, 0.815], task="opinion")
    assert compare("lora", "head").bullets[1].startswith("lora is better than head on opinion by 2.23 ± 0.25 points")
    for task in ("a", "b", "c"):
        values(store, [0.80, 0.82, 0.84], [0.81, 0.82, 0.83], task=task)
    assert compare("lora", "head").bullets[4] == (
        "lora is better than head on opinion by 2.23 ± 0.25 points (n=3; paired-t 95 % interval 1.61 to 2.86; "
        "Holm p 0.0210)."
    )
    for task in ("d", "e", "f", "g", "h", "i", "j", "k"):
        values(store, [0.80, 0.82, 0.84], [0.81, 0.82, 0.83], task=task)
    assert compare("lora", "head").bullet("On opinion") == (
        "On opinion the data don't say: lora − head = 2.23 ± 0.25 points (n=3; paired-t 95 % interval 1.61 to 2.86; "
        "Holm p 0.0547); the interval leaves 0 out, but that is not enough for one of 13 tests; "
        "3 seeds with this spread could have shown 2.34 or more."
    )


def test_lower_is_better_where_the_metric_says_so(store, compare, data):
    values(
        store,
        [0.50, 0.51, 0.52],
        [0.60, 0.612, 0.618],
        metric__name="rmse",
        metric__higher_is_better=False,
    )
    assert compare("lora", "head").bullets[0] == (
        "lora is better than head on movie by 0.1000 ± 0.0020 rmse (n=3; paired-t 95 % interval 0.0950 to 0.1050; "
        "Holm p 0.0001)."
    )
    found = data("lora", "head")
    assert found["verdicts"][0]["word"] == "better"
    assert found["tests"][0]["difference"] == pytest.approx(-0.1), "as measured, A − B"


def test_without_a_direction_nothing_is_called_better(store, compare, data):
    values(store, [0.80, 0.81, 0.82], [0.60, 0.612, 0.618], metric__higher_is_better=None)
    assert (
        compare("lora", "head").bullets[0].startswith("lora is higher than head on movie by 20.00 ± 0.20 points (n=3; ")
    )
    assert compare("lora", "head").bullets[0].endswith("; whether higher is better, no run says.")
    assert [data(*names)["verdicts"][0]["word"] for names in (("lora", "head"), ("head", "lora"))] == [
        "higher",
        "lower",
    ]


def test_one_seed_has_no_spread_and_no_p(study, compare, lines):
    study.right("lora", 0, 180)
    study.right("head", 0, 150)
    out = compare("lora", "head")
    assert out.bullets[0] == (
        "On movie the data don't say: lora − head = 15.00 points with one paired seed (n=1); for these two models "
        "alone, bootstrap 95 % interval 7.00 to 21.51, McNemar p 0.0002 over 200 examples."
    )
    assert "±" not in "\n".join(line for line in out.splitlines() if "no ±" not in line)
    assert out.has("With one paired seed nothing is known about the spread over seeds: no ±, no interval, no p")
    (row,) = out.table("Over seeds")
    assert [row[name] for name in ("sd", "95 % interval", "paired t p (Holm)", "sign-flip p (Holm)", "g_z")] == [""] * 5
    assert [lines("lora", "head")[0][name] for name in ("sd", "low", "p", "p_holm", "p_flip", "flip_floor")] == [""] * 6


def test_one_seed_without_predictions(store, compare):
    values(store, [0.8], [0.7])
    assert compare("lora", "head").bullets[0] == (
        "On movie the data don't say: lora − head = 10.00 points with one paired seed (n=1)."
    )


@pytest.mark.parametrize("n, said", [(1, "one paired seed (n=1)"), (3, "each of 3 paired seeds")])
def test_equal_runs_are_equal(study, store, compare, data, n, said):
    for seed in range(n):
        labels = [0, 1] * 50
        for variant in ("lora", "head"):
            study.scored(variant, seed, labels, [*labels[:80], *[0] * 20])
    out = compare("lora", "head")
    assert out.bullets[0] == f"lora and head are equal on movie: the same value on {said}."
    assert out.table("Over test examples")[0]["bootstrap 95 % interval"] == "0.00 to 0.00"
    assert out.table("Over seeds")[0]["lora − head"] == "0.00"
    found = data("lora", "head")
    assert found["verdicts"][0]["word"] == "equal"
    assert (found["tests"][0]["difference"], found["tests"][0]["p"]) == (0.0, None)


def test_the_same_difference_on_every_seed_decides_nothing(store, compare):
    values(store, [0.8, 0.3, 0.9], [0.7, 0.2, 0.8])
    out = compare("lora", "head")
    assert out.bullets[0] == (
        "On movie the data don't say: lora − head = 10.00 points on each of 3 seeds, and without a spread nothing "
        "measures noise."
    )
    assert out.has("Differences without a spread have no t: they count in Holm's family as tests that did not reject.")


def test_an_undefined_test_counts_in_the_family(store, lines):
    values(store, [0.8, 0.3, 0.9], [0.7, 0.2, 0.8], task="constant")
    values(store, [0.80, 0.82, 0.84], [0.78, 0.798, 0.815], task="opinion")
    constant, opinion = lines("lora", "head")
    assert (constant["p"], constant["p_holm"]) == ("", "")
    assert float(opinion["p_holm"]) == pytest.approx(2 * float(opinion["p"]))


def test_the_family_is_everything_that_the_command_tests(store, lines):
    for variant, step in (("a", 0.01), ("b", 0.013), ("c", 0.02)):
        for task in ("movie", "opinion"):
            for seed in range(4):
                store.add(variant, seed, 0.7 + step * seed, task)
    for task in ("movie", "opinion", "rte"):
        for seed in range(4):
            store.add("lora", seed, 0.69 + 0.001 * seed, task)
    store.add("a", 0, 0.8, "rte")  # one seed: no test
    found = [line for line in lines("--all", "lora") if line["p"]]
    assert len(found) == 6
    smallest = min(found, key=lambda line: float(line["p"]))
    assert float(smallest["p_holm"]) == pytest.approx(6 * float(smallest["p"]))
    assert {line["p_flip_holm"] for line in found} == {"0.75"}, "6 × 2/2⁴"


def test_the_floor_of_the_sign_flip_test_is_stated(store, compare):
    values(store, [0.8, 0.82, 0.84], [0.7, 0.73, 0.71])
    values(store, [0.8, 0.82, 0.84, 0.8, 0.81, 0.83], [0.7, 0.73, 0.71, 0.72, 0.74, 0.75], task="opinion")
    out = compare("lora", "head")
    assert [line for line in out.bullets if "sign-flip" in line] == [
        "n=3: the sign-flip p can't be below 2/2^3 = 0.2500, so no permutation test over these seeds can reach 0.05.",
        "n=6: the sign-flip p can't be below 2/2^6 = 0.0312; by Holm, for 2 tests, none can reach 0.05.",
    ]
    assert [row["its floor"] for row in out.table("Over seeds")] == ["0.2500", "0.0312"]
    assert {row["sign-flip p (Holm)"] for row in out.table("Over seeds")} == {"can't be < 0.05"}


def test_where_a_sign_flip_can_tell_there_is_its_p(store, compare):
    values(store, [0.8, 0.82, 0.84, 0.8, 0.81, 0.83], [0.7, 0.73, 0.71, 0.72, 0.74, 0.75])
    (row,) = compare("lora", "head").table("Over seeds")
    assert row["sign-flip p (Holm)"] == "0.0312 (0.0312)"


def test_verdicts_are_counted_over_tasks(store, compare):
    for task in ("movie", "opinion"):
        values(store, [0.80, 0.82, 0.84], [0.60, 0.621, 0.642], task=task)
    values(store, [0.80, 0.82, 0.84], [0.81, 0.82, 0.83], task="rte")
    assert compare("head", "lora").has("head against lora, 3 tasks: worse on 2, undecided on 1.")
