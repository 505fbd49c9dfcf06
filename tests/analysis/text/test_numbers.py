"""Numbers in cells: digits, ×100, the best of a column, costs."""

from __future__ import annotations

import csv

import pytest

from analysis.text import numbers
from analysis.text.sorting import natural


@pytest.mark.parametrize(
    "values, expected",
    [
        ([0.8], "80.00 (1)"),
        ([0.8, 0.8, 0.8], "80.00 ± 0.00 (3)"),
        ([0.80, 0.82], "81.0 ± 1.4 (2)"),
        ([0.80, 0.802], "80.10 ± 0.14 (2)"),
        ([0.80, 0.8002], "80.01 ± 0.01 (2)"),
        ([0.5, 0.9], "70 ± 28 (2)"),
        ([-0.00001], "0.00 (1)"),
        ([-0.1, -0.1], "-10.00 ± 0.00 (2)"),
        ([0.1, 0.1, 0.1], "10.00 ± 0.00 (3)"),
        ([1, 1], "100.00 ± 0.00 (2)"),
    ],
)
def test_digits_are_those_that_the_spread_allows(store, table, values, expected):
    for seed, value in enumerate(values):
        store.add("lora", seed, value)
    assert table().column("movie") == [expected]


@pytest.mark.parametrize(
    "sd, most, expected",
    [
        (None, 2, 2),
        (0.0, 2, 2),
        (12.3, 2, 0),
        (9.96, 2, 0),
        (9.94, 2, 1),
        (0.0996, 2, 2),
        (0.01, 2, 2),
        (345, 2, 0),
    ],
)
def test_decimals_are_two_digits_of_the_sd(sd, most, expected):
    assert numbers.decimals(sd, most) == expected


@pytest.mark.parametrize(
    "name", ["accuracy", "f1", "matthews", "matthews_correlation", "pearson", "spearman", "macro-f1", "F1"]
)
def test_fractions_are_printed_times_a_hundred(store, table, name):
    store.add("lora", 0, 0.5, metric__name=name)
    out = table()
    assert out.column("movie") == ["50.00 (1)"]
    assert out.note("×100: ") == f"{name}."


@pytest.mark.parametrize("name, value", [("rmse", 0.5), ("loss", 0.5), ("accuracy", 50.0), ("accuracy", -3)])
def test_other_metrics_are_printed_as_they_are(store, table, name, value):
    store.add("lora", 0, value, metric__name=name)
    out = table()
    assert out.column("movie") == [f"{value:.4f} (1)"]
    assert out.note("As measured: ") == f"{name}."


def test_csv_is_never_times_a_hundred(store, table):
    store.add("lora", 0, 0.8)
    assert next(csv.DictReader(table("runs", "--format", "csv").splitlines()))["mean"] == "0.8"


def bold(table) -> list[bool]:
    return ["**" in cell for cell in table.column("movie")]


def test_the_highest_is_bold(store, table):
    for variant, value in (("a", 0.7), ("b", 0.9), ("c", 0.8)):
        store.add(variant, 0, value)
    assert bold(table()) == [False, True, False]


def test_the_lowest_is_bold_where_lower_is_better(store, table):
    for variant, value in (("a", 0.7), ("b", 0.9), ("c", 0.8)):
        store.add(variant, 0, value, metric__name="rmse", metric__higher_is_better=False)
    assert bold(table()) == [True, False, False]


@pytest.mark.parametrize("other", [0.9, 0.900001])
def test_ties_as_printed_are_all_bold(store, table, other):
    for variant, value in (("a", 0.9), ("b", other), ("c", 0.8)):
        store.add(variant, 0, value)
    assert bold(table()) == [True, True, False]


def test_one_row_has_no_best(store, table):
    store.add("lora", 0)
    out = table()
    assert bold(out) == [False] and "bold" not in out


def test_one_number_in_a_column_is_no_best(store, table):
    store.add("a", 0)
    store.add("b", 0, error="no memory")
    assert bold(table()) == [False, False]


def test_without_a_direction_there_is_no_best(store, table):
    for variant in "ab":
        store.add(variant, 0, metric__higher_is_better=None)
    out = table()
    assert bold(out) == [False, False]
    assert out.note("No best is marked for movie: ") == "no run says whether higher is better."


def test_costs_are_means_over_runs_and_tasks(store, table):
    store.add("lora", 0, time__train=10.0, task="movie")
    store.add("lora", 1, time__train=20.0, task="movie")
    store.add("lora", 0, time__train=60.0, task="opinion")
    assert table().column("train s") == ["30.0"]
    lines = csv.DictReader(table("runs", "--format", "csv").splitlines())
    assert [line["train_seconds"] for line in lines] == ["15", "60"], "per task in csv"


def test_a_failed_run_costs_nothing(store, table):
    store.add("lora", 0, time__train=10.0)
    store.add("lora", 1, error="no memory", time__train=99.0)
    assert table().column("train s") == ["10.0"]


def test_what_was_not_measured_is_blank(store, table):
    store.add(
        "lora",
        0,
        params__adapter_start=None,
        params__effective=None,
        params__head=None,
        memory__adapter_file=None,
        memory__activations=None,
        memory__peak_rss=None,
        time__train=None,
        time__tokens_per_second=None,
    )
    assert table().cells[1][2:] == [""] * 8, "three parts of the memory are not the memory"


def test_the_file_is_in_mebibytes_to_the_hundredth(store, table):
    store.add("lora", 0, memory__adapter_file=300_000)
    assert table().column("file MiB") == ["0.29"]


def test_memory_comes_in_its_parts_where_asked_for(store, table):
    store.add("lora", 0)
    split = ["weights MiB", "gradients MiB", "optimizer MiB", "activations MiB"]
    assert not set(split) & set(table().cells[0])
    out = table("runs", "--memory")
    assert [out.column(name) for name in ("memory MiB", *split)] == [["146.0"], ["90.0"], ["2.0"], ["4.0"], ["50.0"]]


def test_cuda_has_columns_where_a_run_used_it(store, table):
    store.add("lora", 0)
    assert "peak CUDA MiB" not in table().cells[0]
    sizes = ("train_allocated", "train_reserved", "eval_allocated", "eval_reserved")
    store.add("lora", 1, **{f"memory__cuda_{name}": (place + 1) * 2**20 for place, name in enumerate(sizes)})
    out = table()
    assert out.column("peak CUDA MiB") == ["1.0"], "over the runs that have it"
    assert "reserved MiB" not in out.cells[0]
    split = table("runs", "--memory")
    shown = ("peak CUDA MiB", "reserved MiB", "eval CUDA MiB", "eval reserved MiB")
    assert [split.column(name) for name in shown] == [["1.0"], ["2.0"], ["3.0"], ["4.0"]]


def test_none_is_not_zero(store, table):
    store.add("head", 0, params__adapter_start=0, params__effective=0)
    assert table().column("trainable") == ["0"]


def test_a_parameter_count_that_is_not_one_number_is_named(store, table):
    store.add("lora", 0, params__adapter_start=1000, task="movie")
    store.add("lora", 0, params__adapter_start=3000, task="opinion")
    out = table()
    assert out.column("trainable") == ["2.0k"]
    assert out.note("Trainable differs between the runs of ") == "lora (1.0k to 3.0k)."


@pytest.mark.parametrize(
    "count, expected",
    [
        (0, "0"),
        (770, "770"),
        (769.5, "769.5"),
        (999.96, "1.0k"),
        (331_776, "331.8k"),
        (999_949, "999.9k"),
        (999_960, "1.0M"),
        (22_713_216, "22.7M"),
        (1_100_000_000, "1.1G"),
        (2_000_000_000_000, "2.0T"),
        (5e15, "5000.0T"),
    ],
)
def test_counts_for_people(count, expected):
    assert numbers.human(count) == expected


@pytest.mark.parametrize(
    "value, expected",
    [
        (None, ""),
        (0, "0"),
        (331_776.0, "331776"),
        (0.1, "0.1"),
        (1 / 3, "0.3333333333333333"),
        (1e300, "1e+300"),
    ],
)
def test_all_digits(value, expected):
    assert numbers.exact(value) == expected


@pytest.mark.parametrize(
    "text, expected", [("184M", 184e6), ("0.33M", 330_000), ("1.5B", 1.5e9), ("12k", 12_000), ("770", 770)]
)
def test_a_printed_count_is_a_number(text, expected):
    assert numbers.magnitude(text) == expected


def test_natural_order():
    names = ["r16", "r4", "R4", "r04", "é", "", "r" + "9" * 5000, "r4a", "r"]
    assert sorted(names, key=natural) == ["", "r", "R4", "r04", "r4", "r4a", "r16", "r" + "9" * 5000, "é"]
