"""`--group budget`: rows of one budget stand together and are compared with each other."""

from __future__ import annotations

import csv

import pytest

from analysis.commands import cli
from analysis.tables.best import mark


@pytest.fixture
def budgets(store):
    """Two variants on two budgets, one without any."""
    for budget, values in ((300_000, (0.9, 0.8)), (100_000, (0.6, 0.7))):
        for variant, value in zip(("lora", "sora"), values, strict=True):
            for seed in (0, 1):
                store.add(variant, seed, value, config={"variant.budget": budget})
    store.add("full", 0, 0.95)


def test_groups_are_titled_and_the_smallest_budget_is_first(budgets, table):
    out = table("runs", "--group", "budget")
    assert out.labels == [
        "**budget 100,000**",
        "lora budget=100000",
        "sora budget=100000",
        "**budget 300,000**",
        "lora budget=300000",
        "sora budget=300000",
        "**no budget**",
        "full",
    ]


def test_the_best_is_that_of_its_group(budgets, table):
    out = table("runs", "--group", "budget")
    assert ["**" in cell for cell in out.column("movie")] == [False, False, True, False, True, False, False, False]
    assert "bold: the best mean of its column among the rows of a group and its ties." in out


def test_latex_titles_span_the_table_and_the_second_of_each_group_is_underlined(budgets, table):
    text = table("runs", "--group", "budget", "--format", "latex")
    assert (
        "\\midrule\n\\multicolumn{10}{l}{\\emph{budget 100,000}} \\\\\nlora budget=100000 & \\underline{60.00}" in text
    )
    assert text.count("\\underline{") == 2 and text.count("\\textbf{") == 2


def test_html_has_a_body_for_each_group(budgets, table):
    text = table("runs", "--group", "budget", "--format", "html")
    assert text.count("<tbody>") == 3
    assert '<th scope="rowgroup" colspan="10">budget 100,000</th>' in text


def test_csv_names_the_budget_of_a_row_grouped_or_not(budgets, table):
    for arguments in (("runs", "--format", "csv"), ("runs", "--format", "csv", "--group", "budget")):
        lines = list(csv.DictReader(table(*arguments).splitlines()))
        assert [line["budget"] for line in lines] == ["", "100000", "300000", "100000", "300000"]


def test_ranks_are_within_the_group(budgets, store, table):
    for budget in (300_000, 100_000):
        for variant in ("lora", "sora"):
            store.add(variant, 0, 0.5, "opinion", config={"variant.budget": budget})
    store.add("full", 0, 0.5, "opinion")
    out = table("runs", "--group", "budget")
    assert out.column("rank") == ["", "1.75", "**1.25**", "", "**1.25**", "1.75", "", ""], "one alone has no rank"
    assert "in its group" in out.note("Rank: ")


def test_budgets_tuned_per_task_are_one_group(store, table):
    store.add("lora", 0, config={"variant.budget": 100})
    store.add("lora", 0, task="opinion", config={"variant.budget": 200})
    assert table("runs", "--group", "budget").labels == ["**budget 100, 200**", "lora"]


def test_a_failed_run_is_in_the_group_of_its_budget(store, table):
    store.add("lora", 0, config={"variant.budget": 100}, error="no memory")
    assert table("runs", "--group", "budget").labels == ["**budget 100**", "lora"]


def test_another_grouping_is_refused(store, capsys):
    with pytest.raises(SystemExit):
        cli.main(["table", "runs", "--group", "task"])
    assert "budget" in capsys.readouterr().err


def best_and_second(values, groups=None, higher=True):
    entries = {place: (value, f"{value:.1f}") for place, value in enumerate(values)}
    found = mark(entries, groups or [range(len(values))], higher_is_better=higher)
    return sorted(found.best), sorted(found.second)


@pytest.mark.parametrize(
    "values, expected",
    [
        ([1.0], ([], [])),
        ([1.0, 2.0], ([1], [0])),
        ([1.0, 3.0, 2.0], ([1], [2])),
        ([2.0, 2.0, 1.0], ([0, 1], [2])),
        ([2.0, 2.01, 1.0, 1.04], ([0, 1], [2, 3])),
        ([1.0, 1.0], ([0, 1], [])),
    ],
)
def test_best_and_second_take_those_along_that_are_printed_alike(values, expected):
    assert best_and_second(values) == expected


def test_the_lowest_is_the_best_where_lower_is_better():
    assert best_and_second([1.0, 3.0, 2.0], higher=False) == ([0], [2])


def test_each_group_has_its_own():
    assert best_and_second([1.0, 3.0, 2.0, 5.0], groups=[(0, 1), (2, 3)]) == ([1, 3], [0, 2])
