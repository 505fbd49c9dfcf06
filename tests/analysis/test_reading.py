"""Nothing that lies in the folders is lost silently, and nothing there is fatal."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from analysis.commands import cli

NOT_USED = "Not used, can't be trusted: "


@pytest.fixture
def base(store):
    """One good run; the text of its record, to be spoilt."""
    return (store.add("lora", 0) / "record.json").read_text()


def spoil(text: str, **changes: object) -> str:
    return json.dumps(json.loads(text) | {name.replace("__", "."): value for name, value in changes.items()})


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "Expecting value"),
        ('{"version": 1, "run_id": "a', "Unterminated string"),
        ("[1, 2]", "not an object"),
        ('{"epoch": 3}', "version: None"),
        (b"\xff\xfe", "invalid start byte"),
        ("[" * 100_000, "recursion"),
        ('{"version": 1, "seed": ' + "9" * 5000 + "}", "integer string conversion"),
    ],
)
def test_what_is_no_record_is_listed_with_its_path(store, base, table, text, reason):
    path = store.raw("bad", text)
    note = table().note(NOT_USED)
    assert note.startswith(f"{path}: ") and reason in note.replace("\\", "")
    assert note.count(str(path)) == 1


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"version": 99}, "version: 99, this is version 1"),
        ({"metric__value": None}, "metric.value: missing in a finished run"),
        ({"metric__value": float("nan")}, "metric.value: nan is not a finite number"),
        ({"params__head": "many"}, "params.head: 'many' is not a whole number"),
        ({"time__train": float("inf")}, "time.train: inf is not a finite number"),
        ({"memory__peak_rss": True}, "memory.peak_rss: True is not a whole number"),
        ({"metric__name": 3}, "metric.name: 3 is not text"),
        ({"metric__higher_is_better": "yes"}, "metric.higher_is_better: 'yes' is not true or false"),
        ({"overrides": "lora"}, "overrides: 'lora' is not a list of texts"),
        ({"git__commit": 5}, "git.commit: 5 is not text"),
        ({"seed": "zero"}, "seed: 'zero' is not a whole number"),
        ({"surprise": 1}, "unknown field 'surprise'"),
    ],
)
def test_a_record_with_a_wrong_value_is_listed(store, base, table, change, reason):
    path = store.raw("bad", spoil(base, run_id="other", **change))
    out = table()
    assert out.note(NOT_USED) == f"{path}: {reason}"
    assert out.column("movie") == ["80.00 (1)"]


def test_a_record_that_can_not_be_opened_is_listed(store, base, table):
    folder = store.root / "runs" / "loop"
    folder.mkdir()
    (folder / "record.json").symlink_to("record.json")
    assert table().note(NOT_USED) == "runs/loop/record.json: Too many levels of symbolic links"


def test_a_temporary_file_left_by_a_killed_run_is_no_record(store, base, table):
    folder = store.root / "runs" / "killed"
    folder.mkdir()
    (folder / ".record.json.x1y2").write_text("{")
    out = table()
    assert out.column("movie") == ["80.00 (1)"]
    assert table("runs", "runs/killed").note("Nothing found: ") == "runs/killed: no record in it"


def test_folders_at_any_depth_and_a_run_itself(store, table):
    one = store.add("lora", 0, under="runs/demo/today")
    store.add("lora", 1, under="runs/more")
    assert table("runs").column("movie") == ["80.00 ± 0.00 (2)"]
    assert table(str(one)).column("movie") == ["80.00 (1)"]


def test_a_run_in_two_roots_counts_once(store, table):
    folder = store.add("lora", 0)
    store.add("lora", 1)
    shutil.copytree(folder, store.root / "copy" / folder.name)
    out = table("runs", "copy")
    assert out.column("movie") == ["80.00 ± 0.00 (2)"]
    assert out.note("Counted once: ") == f"1 run that was found in more than one place: {folder.name}."


def test_of_two_different_records_the_newest_is_used(store, table):
    store.add("lora", 0, 0.7, under="old", finished="2026-01-01T00:00:00Z")
    used = store.add("lora", 0, 0.8, under="new", finished="2026-02-01T00:00:00Z")
    for roots in (("old", "new"), ("new", "old")):
        out = table(*roots)
        assert out.column("movie") == ["80.00 (1)"]
        assert (
            out.note("Counted once, with different records: ")
            == f"run {used.name}: used {used}, left out old/{used.name}."
        )


def test_a_done_run_replaces_a_failed_one(store, table):
    store.add("lora", 0, under="first", error="no memory", finished="2026-02-01T00:00:00Z")
    store.add("lora", 0, under="again", finished="2026-01-01T00:00:00Z")
    out = table("first", "again")
    assert out.column("movie") == ["80.00 (1)"]
    assert not [note for note in out.notes if note.startswith("Failed")]


def test_one_folder_named_in_several_ways_is_no_duplicate(store, table):
    folder = store.add("lora", 0)
    bad = store.raw("bad", "{")
    here = os.path.abspath("runs")
    out = table("runs", "./runs", here, str(folder), str(bad.parent))
    assert out.column("movie") == ["80.00 (1)"]
    assert not [note for note in out.notes if note.startswith("Counted")]
    assert len([note for note in out.notes if note.startswith(NOT_USED)]) == 1


def test_the_order_of_the_folders_does_not_matter(store, table, capsys):
    for seed, value in enumerate((0.1, 0.2, 0.3)):
        store.add("lora", seed, value, under=f"part{seed}")
        store.add("sora", seed, under=f"part{seed}", error=f"reason {seed}")
    store.add("lora", 0, 0.15, under="part2")
    for form in ("md", "csv", "latex"):
        texts = set()
        for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
            assert cli.main(["table", *(f"part{n}" for n in order), "nowhere", "--format", form]) == 0
            output = capsys.readouterr()
            texts.add((output.out, output.err))
        assert len(texts) == 1


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda root: None, "no such folder"),
        (lambda root: root.mkdir(), "no record in it"),
        (lambda root: root.write_text("{}"), "not a folder"),
    ],
)
def test_no_records_at_all(store, capsys, make, reason):
    make(store.root / "empty")
    assert cli.main(["table", "empty"]) == 2
    assert capsys.readouterr() == ("", f"analysis: no records: empty: {reason}\n")


def test_a_root_without_records_beside_one_with_records_is_listed(store, base, table):
    assert table("runs", "tpyo").note("Nothing found: ") == "tpyo: no such folder"


def test_nothing_but_corrupt_records(store, capsys):
    path = store.raw("bad", "{}")
    assert cli.main(["table", "runs"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        f"Not used, can't be trusted: {path}: version: None, this is version 1",
        "analysis: no record that can be trusted; 1 that can't",
    ]


def test_a_record_in_the_folder_of_another_run_is_not_used(store, table):
    mine, other = store.add("lora", 0, 0.7), store.add("lora", 5, 0.9)
    shutil.copy(other / "record.json", mine / "record.json")
    out = table()
    assert out.column("movie") == ["90.00 (1)"]
    wrong = f"{mine}/record.json: run_id: '{other.name}' in the folder of '{mine.name}'"
    assert out.note("Not used, can't be trusted: ") == wrong


def test_a_folder_of_a_run_may_be_called_in_other_ways(store, table, monkeypatch):
    folder = store.add("lora", 0, 0.7).resolve()
    (folder.parents[1] / "link").symlink_to(folder)
    assert table("link").column("movie") == ["70.00 (1)"]
    monkeypatch.chdir(folder)
    assert table(".").column("movie") == ["70.00 (1)"]


def test_a_run_that_was_replaced_is_not_found(store, table):
    folder = store.add("lora", 0, 0.7)
    shutil.copytree(folder, folder.parent / ".replaced" / f"{folder.name}-1")
    assert table().column("movie") == ["70.00 (1)"] and "trusted" not in table()
