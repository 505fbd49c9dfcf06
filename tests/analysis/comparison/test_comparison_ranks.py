"""Rows over tasks: ranks, tests of them, and the critical-difference diagram."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from analysis.commands import cli

TASKS = ("boolq", "cola", "movie", "opinion", "rte", "sst2")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def families(store):
    """Four rows on six tasks: a is always first, d always last, b and c take turns."""

    def add(tasks=TASKS, seeds=(0,)):
        for place, task in enumerate(tasks):
            for seed in seeds:
                turn = 0.01 if place % 2 else -0.01
                values = {"a": 0.9, "b": 0.8 + turn, "c": 0.8 - turn, "d": 0.6}
                for variant, value in values.items():
                    store.add(variant, seed, value + seed / 100 + place / 100, task)

    return add


def test_ranks_friedman_and_nemenyi(families, compare):
    families()
    out = compare("--all", "b")
    assert out.bullet("Average ranks") == (
        "Average ranks over 6 tasks (boolq, cola, movie, opinion, rte, sst2), 1 the best: "
        "a (1.00), b (2.50), c (2.50), d (4.00)."
    )
    # χ² = 12 · 6 / (4 · 5) · (1² + 2 · 2.5² + 4² − 4 · 5² / 4) = 16.2; critical difference 2.569 · √(20/36).
    assert out.bullet("Friedman") == (
        "Friedman, corrected for ties: χ²(3) = 16.20, p 0.0010: some rows differ. "
        "Nemenyi, critical difference 1.91: a before d (p 0.0003)."
    )


def test_the_ranks_in_json(families, data):
    families()
    found = data("--all", "b")["ranks"]
    assert (found["rows"], found["average"], found["untested"]) == (["a", "b", "c", "d"], [1.0, 2.5, 2.5, 4.0], None)
    assert found["friedman"]["chi2"] == pytest.approx(16.2)
    assert found["nemenyi_p"][0][3] == found["nemenyi_p"][3][0] < 0.05 < found["nemenyi_p"][0][1]
    assert found["critical_difference"] == pytest.approx(2.569 * (20 / 36) ** 0.5, abs=0.001)


@pytest.mark.parametrize("tasks", [2, 4])
def test_with_few_tasks_there_are_ranks_but_no_test(families, compare, tasks):
    families(TASKS[:tasks])
    out = compare("--all", "b")
    assert out.bullet("Average ranks").startswith(f"Average ranks over {tasks} tasks")
    assert out.bullet("No Friedman") == (
        "No Friedman test, no Nemenyi test, no critical-difference figure: a test of ranks needs 5 tasks that all "
        f"rows have and 3 rows; here: {tasks} and 4."
    )
    assert "χ²" not in out


def test_two_rows_have_no_test_of_ranks(families, compare):
    families()
    out = compare("a", "d")
    assert out.bullet("Average ranks").endswith("1 the best: a (1.00), d (2.00).")
    assert out.bullet("No Friedman").endswith("here: 6 and 2.")


def test_one_task_has_no_ranks(families, compare):
    families(TASKS[:1])
    assert "Average ranks" not in compare("--all", "b")


def test_a_task_that_a_row_lacks_is_not_in_the_ranks(families, store, compare):
    families()
    store.add("a", 0, task="wnli")
    store.add("e", 0, task="movie", error="no memory")
    out = compare("--all", "b")
    assert out.bullet("Average ranks").startswith("Average ranks over 6 tasks")
    assert out.bullet("Not in the ranks") == ("Not in the ranks: e (no run is done); wnli (no done run of b, c, d).")


def test_a_task_on_which_rows_can_not_be_compared_is_not_in_the_ranks(families, store, compare):
    families(TASKS[:5])
    for variant in "abcd":
        store.add(variant, 0, task="rmse", metric__name="rmse", metric__higher_is_better=None)
    out = compare("--all", "b")
    assert out.bullet("Not in the ranks") == "Not in the ranks: rmse (no run says whether higher is better)."


def test_where_lower_is_better_the_lowest_is_first(store, compare):
    for task in ("movie", "opinion"):
        for variant, value in (("a", 0.1), ("b", 0.2)):
            store.add(variant, 0, value, task, metric__name="rmse", metric__higher_is_better=False)
    assert compare("b", "a").bullet("Average ranks").endswith("a (1.00), b (2.00).")


def test_ranks_are_of_means_over_seeds_and_ties_share_theirs(store, compare):
    for task in ("movie", "opinion"):
        for variant, values in (("a", (0.1, 0.2, 0.3)), ("b", (0.2, 0.2, 0.2)), ("c", (0.3, 0.1, 0.1))):
            for seed, value in enumerate(values):
                store.add(variant, seed, value, task)
    assert compare("--all", "a").bullet("Average ranks").endswith("a (1.50), b (1.50), c (3.00).")


def test_without_a_difference_in_ranks_nemenyis_test_is_not_made(store, data, compare):
    for place, task in enumerate(TASKS):
        for turn, variant in enumerate("abc"):
            store.add(variant, 0, 0.5 + (place + turn) % 3 / 10, task)
    assert compare("--all", "a").bullet("Friedman") == (
        "Friedman, corrected for ties: χ²(2) = 0.00, p 1.0000: not enough to say that any rows differ, so "
        "Nemenyi's test is not used."
    )
    assert data("--all", "a")["ranks"]["nemenyi_p"] is None


def test_rows_that_are_equal_everywhere(store, compare):
    for task in TASKS:
        for variant in "abc":
            store.add(variant, 0, 0.5, task)
    out = compare("--all", "a")
    assert out.has("Friedman: all rows share one rank on every task.")
    assert out.bullets[:2] == [
        f"b and a are equal on {task}: the same value on one paired seed (n=1)." for task in TASKS[:2]
    ]


def texts(path: Path) -> list[str]:
    return re.findall(r"<text [^>]*>([^<]*)</text>", path.read_text(encoding="utf-8"))


def test_the_diagram_has_a_mark_and_a_name_for_each_row(families, compare):
    families()
    compare("--all", "b", figure="cd.svg")
    shown = texts(Path("cd.svg"))
    assert {"a (1.00)", "b (2.50)", "c (2.50)", "d (4.00)"} <= set(shown)
    assert "average rank over 6 tasks, 1 is the best; a bar joins rows that do not differ" in shown
    assert "critical difference 1.91 (Nemenyi, 0.05)" in shown
    svg = Path("cd.svg").read_text(encoding="utf-8")
    assert len(re.findall('id="PathCollection_', svg)) == 4


def test_where_friedmans_test_does_not_reject_one_bar_joins_all(store, compare):
    for place, task in enumerate(TASKS):
        for turn, variant in enumerate("abc"):
            store.add(variant, 0, 0.5 + (place + turn + place // 3) % 3 / 10, task)
    compare("--all", "a", figure="cd.svg")
    assert not [text for text in texts(Path("cd.svg")) if text.startswith("critical")]


def test_the_diagram_as_png(families, compare):
    families()
    compare("--all", "b", figure="cd.PNG")
    assert Path("cd.PNG").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["cd.svg", "cd.png"])
def test_the_same_bytes_twice(families, compare, name):
    families()
    compare("--all", "b", figure=name)
    first = Path(name).read_bytes()
    compare("--all", "b", figure=name)
    assert Path(name).read_bytes() == first


@pytest.mark.filterwarnings("ignore:Glyph")  # whether a font has them is the machine's affair
def test_names_are_drawn_letter_by_letter_and_long_ones_cut(store, compare):
    for task in TASKS:
        for variant, value in (("$x_1$", 0.9), ("低秩", 0.8), ("v" * 500, 0.7)):
            store.add(variant, 0, value, task)
        store.add("v" * 499 + "w", 0, 0.6, task)
    compare("--all", "低秩", figure="cd.svg")
    shown = set(texts(Path("cd.svg")))
    assert {"$x_1$ (1.00)", "低秩 (2.00)"} <= shown
    long = [text for text in shown if text.startswith("v" * 43 + "…")]
    assert len(long) == 2, "cut, and told apart"


@pytest.mark.parametrize(
    "names, figure, error",
    [
        (
            ["a", "b"],
            "cd.svg",
            "--figure: a test of ranks needs 5 tasks that all rows have and 3 rows; here: 6 and 2",
        ),
        (["--all", "b"], "cd.pdf", "--figure: 'cd.pdf', allowed: a name that ends in .png or .svg"),
        (["--all", "b"], "cd", "--figure: 'cd', allowed: a name that ends in .png or .svg"),
        (["--all", "b"], "nowhere/cd.svg", "can't write nowhere/cd.svg: No such file or directory"),
    ],
)
def test_a_figure_that_can_not_be_drawn_is_an_error(families, capsys, names, figure, error):
    families()
    assert cli.main(["compare", *names, "runs", "--resamples", "100", "--figure", figure]) == 2
    assert capsys.readouterr().err == f"analysis: {error}\n"
    assert not Path(figure).exists()
