"""What a sweep says of its runs: what tells each from the others, where it stands, and how long the rest will take."""

from __future__ import annotations

import re

import pytest

from tests.trainer.sweeping import finished
from trainer import record as records
from trainer.record import Record, Time
from trainer.sweeps import titles
from trainer.sweeps.estimate import Durations, words
from trainer.sweeps.titles import Fault, Titles

FAST = ["train.max_steps=2"]


@pytest.fixture
def called(configured):
    """Labels of runs by the parts in which their overrides differ."""

    def told(*jobs: list[str]) -> list[str]:
        made = Titles(jobs)
        return [made.label(number, configured([*job])) for number, job in enumerate(jobs)]

    return told


def test_a_run_is_called_by_what_differs(called):
    assert called(
        ["variant=lora", "variant.rank=4", "optim.lr=0.01", "seed=0"],
        ["variant=lora", "variant.rank=8", "optim.lr=0.01", "seed=1"],
    ) == ["[1/2] lora rank=4 on movie, seed 0", "[2/2] lora rank=8 on movie, seed 1"]


def test_variants_and_tasks_are_named_once(called):
    assert called(["variant=lora", "task=movie"], ["variant=head", "task=opinion"]) == [
        "[1/2] lora on movie, seed 0",
        "[2/2] head on opinion, seed 0",
    ]


def test_fields_of_one_name_are_told_apart(called):
    assert called(["variant.dropout=0.1", "model.dropout=0.0"], ["variant.dropout=0.0", "model.dropout=0.1"]) == [
        "[1/2] lora variant.dropout=0.1 model.dropout=0.0 on movie, seed 0",
        "[2/2] lora variant.dropout=0.0 model.dropout=0.1 on movie, seed 0",
    ]


def test_two_files_that_give_one_name_are_never_alike(called):
    assert called(["variant=lora"], ["variant=families/lora"]) == [
        "[1/2] lora variant=lora on movie, seed 0",
        "[2/2] lora variant=families/lora on movie, seed 0",
    ]


def test_a_fault_is_told_once_for_its_seeds():
    faults = [Fault("a", 0, "wrong"), Fault("b", 0, "bad"), Fault("a", 1, "wrong"), Fault("c", None, "odd")]
    assert list(titles.lines(faults)) == ["a, seeds 0, 1: wrong", "b, seed 0: bad", "c: odd"]


def test_how_long_follows_from_the_runs_that_are_done():
    known = Durations()
    assert known.expected([("lora", "movie")]) is None
    times = {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:01:00+00:00"}
    known.take(Record("id", "s", "lora", "movie", "m", 0, "done", time=Time(train=10.0, eval=1.0), **times))
    known.take(Record("id", "s", "head", "movie", "m", 0, "done", time=Time(train=100.0, eval=20.0), **times))
    assert known.expected([("lora", "movie")] * 2) == 120.0
    assert known.expected([("head", "movie")]) == 120.0, "it was interrupted: its parts took longer than its last"
    assert known.expected([("sora", "movie")]) == 90.0, "the mean of what is known"
    assert [words(seconds) for seconds in (0.2, 59, 100, 3000, 9000)] == ["1 s", "59 s", "2 min", "50 min", "2.5 h"]


@pytest.mark.slow
def test_a_sweep_counts_its_runs_and_says_what_is_left_and_no_record_holds_what_it_calls_them(tiny_overrides, tmp_path):
    command = [*tiny_overrides, *FAST, "variant=lora", "variant.rank=2,4,8"]
    code, output = finished(command, tmp_path / "log")
    assert code == 0, output
    said = re.findall(r"^running: (.*) \(\w{12}\)$", output, re.MULTILINE)
    assert said == [f"[{number}/3] lora rank={rank} on tiny, seed 0" for number, rank in ((1, 2), (2, 4), (3, 8))]
    assert re.search(r"^1 of 3 runs remain, about \d+ s$", output, re.MULTILINE)
    found = [records.read(path) for path in records.find(tmp_path / "runs")]
    assert len(found) == 3 and not any("hydra" in text for record in found for text in record.overrides)
    code, output = finished([*tiny_overrides, *FAST, "variant=lora", "variant.rank=2,4,8,16"], tmp_path / "log")
    assert re.search(r"^4 runs: 3 done, 0 failed, 1 to do, about \d+ s$", output, re.MULTILINE), output
    assert "done already: [1/4] lora rank=2 on tiny, seed 0" in output


@pytest.mark.slow
def test_a_dry_run_of_a_sweep_is_one_table(tiny_overrides, tmp_path):
    command = [*tiny_overrides, *FAST, "variant=lora,head", "seed=0,1,2", "--dry-run"]
    code, output = finished(command, tmp_path / "log")
    assert code == 0, output
    table = [line for line in output.splitlines() if "  " in line]
    assert re.split(r"\s{2,}", table[0].strip()) == ["runs", "steps", "trained", "MiB", "time"]
    assert [re.split(r"\s{2,}", line)[:3] for line in table[1:]] == [
        ["lora on tiny", "3", "2"],
        ["head on tiny", "3", "2"],
        ["together, the largest memory", "6", re.split(r"\s{2,}", table[1])[4]],
    ]
    assert "running: " not in output and not list((tmp_path / "runs").rglob("record.json"))


@pytest.mark.slow
def test_a_dry_run_names_the_runs_that_cant_be(tiny_overrides, tmp_path):
    code, output = finished([*tiny_overrides, "variant.rank=0,2", "seed=0,1", "--dry-run"], tmp_path / "log")
    assert code == 1
    assert "invalid: lora rank=0 on tiny: variant.rank: 0, allowed: a whole number ≥ 1" in output
    assert "lora rank=2 on tiny" in output and "error: 2 of 4 runs can't be carried out" in output
