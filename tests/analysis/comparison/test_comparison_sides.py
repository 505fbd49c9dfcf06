"""Which rows a command line names."""

from __future__ import annotations

import pytest

from analysis.commands import cli


@pytest.fixture
def fails(capsys):
    """`python -m analysis compare …`, which must fail; its error."""

    def call(*arguments: str) -> str:
        assert cli.main(["compare", *arguments]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        return output.err

    return call


@pytest.fixture
def ranks(store):
    """lora with rank 4 and 8 at two learning rates, and head."""
    for seed in (0, 1):
        for rank in (4, 8):
            for lr in (0.001, 0.01):
                store.add("lora", seed, rank / 10 + lr + seed / 100, config={"variant.rank": rank, "optim.lr": lr})
        store.add("head", seed, 0.5)


@pytest.mark.parametrize(
    "name",
    ["lora rank=4 optim.lr=0.01", "lora optim.lr=0.01 rank=4"],
    ids=["the label", "its settings in another order"],
)
def test_a_row_by_its_settings(ranks, data, name):
    assert data(name, "head")["verdicts"][0]["a"] == "lora rank=4 optim.lr=0.01"


def test_a_row_by_its_variant_where_that_is_one_row(ranks, data):
    assert data("lora rank=4 optim.lr=0.01", "head")["verdicts"][0]["b"] == "head"


def test_part_of_the_settings_is_enough_where_one_row_has_them(store, data):
    store.add("lora", 0, config={"variant.rank": 4, "optim.lr": 0.01})
    store.add("lora", 0, config={"variant.rank": 8, "optim.lr": 0.01})
    store.add("lora", 0, config={"variant.rank": 8, "optim.lr": 0.02})
    expected = ("lora rank=4", "lora optim.lr=0.02")
    for names in (expected, ("lora optim.lr=0.01 rank=4", "lora rank=8 optim.lr=0.02")):
        (verdict,) = data(*names)["verdicts"]
        assert (verdict["a"], verdict["b"]) == expected


def test_a_label_that_starts_another_is_that_row(store, data):
    store.add("lora", 0)
    store.add("lora rank=4", 0)
    assert data("lora", "lora rank=4")["verdicts"][0]["a"] == "lora"


def test_an_ambiguous_name_lists_its_candidates(ranks, fails):
    assert fails("lora rank=4", "head", "runs") == (
        "analysis: compare: 'lora rank=4' is 2 rows; name one of 'lora rank=4 optim.lr=0.001', "
        "'lora rank=4 optim.lr=0.01'\n"
    )


def test_a_name_that_no_row_has_lists_all(ranks, fails):
    error = fails("loar", "head", "runs")
    assert error.startswith("analysis: compare: no row is called 'loar'; rows: 'head', 'lora rank=4 ")
    assert error.count("\n") == 1


def test_a_long_list_is_cut_with_its_number(store, fails):
    for number in range(200):
        store.add(f"v{number}", 0)
    assert fails("lora", "head", "runs").endswith("'v29' and 170 more\n")


def test_a_row_is_not_compared_with_itself(store, fails):
    store.add("lora", 0)
    assert fails("lora", "lora", "runs") == "analysis: compare: 'lora' and 'lora' are the same row: 'lora'\n"
    assert "is the only row" in fails("--all", "lora", "runs")


@pytest.mark.parametrize("arguments", [["lora"], ["lora", "head"]])
def test_names_without_folders_are_an_error(fails, arguments):
    forms = "A B runs …, --all BASELINE runs …, or --pair A B runs …"
    assert fails(*arguments) == f"analysis: compare: no run folders; expected: {forms}\n"


def test_no_records_are_an_error(store, fails):
    assert fails("lora", "head", "nowhere") == "analysis: no records: nowhere: no such folder\n"


@pytest.mark.parametrize("resamples", ["0", "99", "-5", "1e3", "many", "²", "2000000"])
def test_a_number_of_resamples_that_makes_no_interval_is_refused(store, capsys, resamples):
    with pytest.raises(SystemExit) as stop:
        cli.main(["compare", "lora", "head", "runs", "--resamples", resamples])
    assert stop.value.code == 2
    assert "allowed: a whole number from 100 to 1000000" in capsys.readouterr().err


def test_every_other_row_against_one(store, data):
    for variant in ("sora", "lora", "head"):
        for seed in (0, 1):
            store.add(variant, seed, 0.7 + seed / 10)
    found = data("--all", "lora")
    assert [(v["a"], v["b"]) for v in found["verdicts"]] == [("head", "lora"), ("sora", "lora")]
    assert found["ranks"]["rows"] == ["head", "lora", "sora"]


def test_named_pairs_are_one_family_each_with_its_own_two_rows(store, compare, data):
    for seed in range(3):
        for variant, value in (("lora", 0.7), ("adalora", 0.8), ("sora", 0.6)):
            store.add(variant, seed, value + seed**2 / 100 * len(variant))
    pairs = ("--pair", "adalora", "lora", "--pair", "sora", "lora")
    assert [(verdict["a"], verdict["b"]) for verdict in data(*pairs)["verdicts"]] == [
        ("adalora", "lora"),
        ("sora", "lora"),
    ]
    said = compare(*pairs)
    head, *body = [[cell.strip() for cell in line[1:-1].split(" | ")] for line in said.splitlines() if line[:2] == "| "]
    assert head[:5] == ["pair", "task", "metric", "first", "second"] and head[5] == "first − second"
    assert [line[0] for line in body if "−" in line[0]][:2] == ["adalora − lora", "sora − lora"]
    assert "for the family, 2 tests of its kind" in said


@pytest.mark.parametrize(
    "arguments, error",
    [
        (("--pair", "lora", "lora"), "'lora' and 'lora' are the same row: 'lora'"),
        (("--pair", "lora", "head", "--pair", "head", "lora"), "the pair of 'head' and 'lora' is there twice"),
        (("--pair", "lora", "loar"), "no row is called 'loar'; rows: 'head', 'lora'"),
    ],
)
def test_pairs_that_are_none(store, fails, arguments, error):
    for variant in ("lora", "head"):
        store.add(variant, 0)
    assert fails(*arguments, "runs") == f"analysis: compare: {error}\n"
