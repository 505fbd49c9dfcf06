"""What a sweep takes beyond its runs, of runs whose times are known."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from benchmarks import sweep_overhead
from trainer import record
from trainer.record import Record, Time

BEGUN = 1_700_000_000.0


def add(place, name: str, ended: float, time: Time, error: str | None = None) -> None:
    """A run whose record was written `ended` seconds after the sweep began."""
    folder = place / "overhead" / name
    folder.mkdir(parents=True)
    row = Record(name, "overhead", "lora", "movie", "minilm", 0, time=time)
    row.status, row.error, row.metric.value = ("failed", error, None) if error else ("done", None, 0.5)
    written = record.write(row, folder)
    os.utime(written, (BEGUN + ended, BEGUN + ended))


def test_seconds_between_and_before_the_runs_are_what_their_own_times_leave(tmp_path):
    add(tmp_path, "c", 40.75, Time(train=9.0, eval=1.0))  # named in another order than they ended in
    add(tmp_path, "a", 18.0, Time(train=9.0, eval=1.0))
    add(tmp_path, "b", 30.25, Time(train=11.0, eval=1.0))
    assert sweep_overhead.shares(str(tmp_path), BEGUN, 44.0) == {
        "runs": 3,
        "wall": 44.0,
        "inside": 32.0,
        "ratio": 1.375,
        "start": 8.0,
        "gap": 0.375,
        "largest_gap": 0.5,
    }


def test_a_failed_run_is_named_and_no_number_made_of_it(tmp_path):
    add(tmp_path, "a", 18.0, Time(train=9.0, eval=1.0))
    add(tmp_path, "b", 20.0, Time(), error="out of luck")
    with pytest.raises(ValueError, match=r"overhead/b: out of luck, allowed: a finished run"):
        sweep_overhead.shares(str(tmp_path), BEGUN, 44.0)


def test_the_sweep_has_as_many_runs_of_as_many_steps_as_was_asked(monkeypatch):
    asked = []

    def run(command, **options):
        asked.append(command)
        assert options["check"], "a sweep that fails is no measurement"

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sweep_overhead, "shares", lambda place, begun, wall: {"place": place})
    place = sweep_overhead.measure(6, 100, 3)["place"]
    assert {"variant=lora,head", "seed=0,1,2", "data.limit=100", "train.max_steps=3"} < set(asked[0])
    assert f"runs_dir={place}" in asked[0] and not os.path.exists(place)


def test_the_table_and_the_json_say_what_was_measured(monkeypatch, capsys, tmp_path):
    found = {"runs": 24, "wall": 282.11, "inside": 266.39, "ratio": 1.05901, "start": 8.04, "gap": 0.2899}
    found |= {"largest_gap": 0.487}
    monkeypatch.setattr(sweep_overhead, "measure", lambda runs, rows, steps: found)
    monkeypatch.setattr("sys.argv", ["sweep_overhead", "--json", str(tmp_path / "found.json")])
    sweep_overhead.main()
    assert capsys.readouterr().out == (
        "| runs | wall s | inside s | wall / inside | start s | gap s, median | largest |\n"
        "|---:|---:|---:|---:|---:|---:|---:|\n"
        "| 24 | 282.1 | 266.4 | 1.059 | 8.0 | 0.29 | 0.49 |\n"
    )
    assert json.loads((tmp_path / "found.json").read_text()) == found


@pytest.mark.parametrize("runs", ["3", "0", "-2", "many"])
def test_runs_that_two_methods_can_not_share_are_refused_in_one_line(monkeypatch, capsys, runs):
    monkeypatch.setattr("sys.argv", ["sweep_overhead", "--runs", runs])
    with pytest.raises(SystemExit):
        sweep_overhead.main()
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == f"sweep_overhead: error: argument --runs: {runs}, allowed: an even number ≥ 2"
