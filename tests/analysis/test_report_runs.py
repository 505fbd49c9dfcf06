"""All runs in a report: their records, curves, ranks, and where a tracker has them."""

from __future__ import annotations

import json
import math

import pytest

from analysis.report import journals, records, tracker
from tests.analysis.plots.conftest import LAYERS, allocate, log


def test_every_field_of_every_record_is_in_the_page(store, report):
    folders = [store.add("lora", seed, 0.1 * seed, config={"x.list": [1, "a"], "x.flag": True}) for seed in range(4)]
    folders += [store.add("sora", 0, config={"x.flag": 1}), store.add("sora", 1, error="boom\nbang")]
    page = report()
    ids = page.column("run_id")
    for folder in folders:
        row = json.loads((folder / "record.json").read_text())
        number = ids.index(row["run_id"])
        here = {name: page.column(name)[number] for name in page.data("runs")["fields"]}
        assert json.dumps({n: v for n, v in here.items() if v is not None}, sort_keys=True) == json.dumps(
            row, sort_keys=True
        )
        assert page.data("runs")["folder"][number] == str(folder)


def test_runs_stand_in_the_order_of_the_table(store, report):
    for task in ("b", "a"):
        for seed in (10, 2):
            store.add("sora", seed, task=task)
            store.add("lora", seed, task=task)
    page = report()
    found = list(zip(page.column("variant"), page.column("task"), page.column("seed"), strict=True))
    assert found == sorted(found)


def test_columns_are_as_small_as_they_can_be():
    assert records.encode([1, 1, 1]) == {"same": 1}
    assert records.encode(["a", "b", "a", "a"]) == {"pool": ["a", "b"], "at": [0, 1, 0, 0]}
    assert records.encode([0.1, 0.2, 0.3]) == {"all": [0.1, 0.2, 0.3]}
    mixed = records.encode([1, True, 1.0, 1, True, 1.0])
    assert json.dumps(mixed["pool"]) == "[1, true, 1.0]"


def test_numbers_that_a_browser_has_not_got_are_text():
    assert records.plain([math.nan, 2**60, 2**53, {"a": -math.inf}]) == ["nan", str(2**60), 2**53, {"a": "-inf"}]


def test_curves_are_those_of_the_journal(store, report):
    log(store.add("lora", 0), {5: 0.5, 10: 0.123456789}, {5: 0.7, 10: 0.4})
    (found,) = report().data("curves")["runs"]
    steps = report().data("curves")["steps"]
    assert [(name, steps[place], values) for name, place, values, _ in found] == [
        ("eval/accuracy", [5, 10], [0.5, 0.12346]),
        ("train/task_loss", [5, 10], [0.7, 0.4]),
    ]


def test_a_long_curve_keeps_its_ends_and_every_extreme():
    points = [(step, math.sin(step / 50)) for step in range(5000)]
    points[2345] = (2345, 99.0)
    points[4001] = (4001, -99.0)
    kept = journals.thin(points, 200)
    assert 150 < len(kept) <= 200 and kept == sorted(kept)
    assert {points[0], points[-1], (2345, 99.0), (4001, -99.0)} <= set(kept)
    assert journals.thin(points[:200], 200) == points[:200]


def test_ranks_of_layers_are_the_first_and_the_last(store, report):
    allocate(store.add("adalora", 0), (0, [5] * 6), (4, [4] * 6), (8, [1, 2, 3, 4, 0, 8]))
    found = report().data("ranks")
    assert found["runs"] == [[0, 0, [5] * 6, 8, [1, 2, 3, 4, 0, 8], 3]]
    assert found["layouts"][0]["layers"] == LAYERS and found["layouts"][0]["blocks"] == ["0", "1", "2"]


def test_what_a_run_lacks_is_said(store, report):
    store.add("lora", 0, rank__start=8)
    (store.add("head", 0) / "metrics.jsonl").write_text("{")
    page = report()
    assert page.data("curves")["runs"] == ["metrics.jsonl: line 1 is no JSON", "no metrics.jsonl"]
    reasons = page.data("ranks")["reasons"]
    assert [reasons[n] for n in page.data("ranks")["runs"]] == [
        "no ranks.jsonl: the method has no ranks",
        "no ranks.jsonl",
    ]


# -- trackers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["https://wandb.ai/me/p/runs/1", "http://localhost:7860/?run=a%20b", "HTTPS://a.b"])
def test_a_tracker_with_a_web_address_is_a_link(tmp_path, url):
    (tmp_path / "tracker.json").write_text(json.dumps({"name": "wandb", "url": url, "project": "p", "run": "r"}))
    assert tracker.read(tmp_path) == {"name": "wandb", "project": "p", "run": "r", "url": url}


@pytest.mark.parametrize(
    "url",
    [
        *("javascript:alert(1)", " javascript:alert(1)", "java\nscript:alert(1)", "data:text/html,x", "file:///etc/x"),
        *("//evil.example", "https:///x", "http://[", "https://a b", "", 7, ["https://a.b"]),
    ],
)
def test_no_other_address_is_ever_a_link(tmp_path, url):
    (tmp_path / "tracker.json").write_text(json.dumps({"name": "x", "url": url}))
    found = tracker.read(tmp_path)
    assert "url" not in found and found["address"] == (url if isinstance(url, str) else json.dumps(url))


def test_a_tracker_without_an_address_says_how_to_find_the_run(tmp_path):
    content = {"name": "trackio", "url": None, "project": "p", "run": "r", "sent": {"a": 1}}
    (tmp_path / "tracker.json").write_text(json.dumps(content))
    assert tracker.read(tmp_path) == {"name": "trackio", "project": "p", "run": "r"}


@pytest.mark.parametrize("text", ["{", "[]", "7", "{}"])
def test_a_tracker_file_that_can_not_be_used_is_a_reason(tmp_path, text):
    assert tracker.read(tmp_path) is None
    (tmp_path / "tracker.json").write_text(text)
    assert str(tracker.read(tmp_path)).startswith("tracker.json: ")
