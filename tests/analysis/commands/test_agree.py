"""`agree`: whether allocations of ranks agree between seeds and tasks."""

from __future__ import annotations

import json

import pytest

from analysis.commands import cli
from analysis.comparison import allocations
from analysis.records.runs import read
from analysis.stats.agreement import Agreement
from tests.analysis.plots.conftest import allocate


@pytest.fixture
def runs(store):
    for task, ranks in (("movie", [8, 1, 1, 1, 1, 1]), ("opinion", [1, 1, 8, 1, 1, 1])):
        for seed in range(2):
            allocate(store.add("adalora", seed, task=task), (0, [4] * 6), (9, ranks))
            allocate(store.add("lora", seed, task=task), (0, [4] * 6))
    store.add("full", 0)


def agree(capsys, *arguments):
    assert cli.main(["agree", "runs", *arguments]) == 0
    return capsys.readouterr().out


def test_seeds_of_a_task_and_tasks_are_lines_of_their_own(runs, capsys):
    table = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in agree(capsys).splitlines() if line[0:1] == "|"
    ]
    lines = {(line[0], line[1]): line[2:] for line in table[2:]}
    assert set(lines) == {("adalora", "movie"), ("adalora", "opinion"), ("adalora", "between tasks")}
    assert lines["adalora", "movie"][:3] == ["2", "1", "1.000"]
    assert lines["adalora", "between tasks"][:3] == ["4", "4", f"{6 / 13:.3f}"]


def test_what_has_no_line_is_named_with_the_reason(runs, capsys):
    assert "- Without a line: full (no ranks.jsonl); lora (the same ranks in every run)." in agree(capsys)


def test_what_is_not_used_is_named_below(runs, store, capsys):
    store.raw("bad", "{}")
    assert "- Not used, can't be trusted: runs/bad/record.json: version" in agree(capsys)


def test_as_json(runs, capsys):
    found = json.loads(agree(capsys, "--format", "json"))
    assert [line["where"] for line in found["lines"]] == ["movie", "opinion", "between tasks"]
    assert found["lines"][0]["found"]["overlap"] == 1 and found["left_out"]


def test_runs_without_ranks_of_their_own_are_an_error(store, capsys):
    allocate(store.add("lora", 0), (0, [4] * 6))
    assert cli.main(["agree", "runs"]) == 2
    assert capsys.readouterr().err == "analysis: agree: no row whose runs found ranks of their own: lora (one run)\n"


def test_other_layers_are_not_compared(store, capsys):
    allocate(store.add("adalora", 0), (0, [4, 1, 1, 1, 1, 1]))
    folder = store.add("adalora", 1)
    (folder / "ranks.jsonl").write_text('{"step": 0, "ranks": {"other": 3}}\n')
    assert cli.main(["agree", "runs"]) == 2
    assert "adalora (its runs adapted different layers)" in capsys.readouterr().err


def test_controls_whose_ranks_are_those_of_other_runs_have_no_line(runs, store, capsys):
    given = {"variant.ranks_from.run_id": "0123456789ab"}
    for seed, ranks in enumerate(([8, 1, 1, 1, 1, 1], [1, 8, 1, 1, 1, 1])):
        allocate(store.add("lora-at-ranks", seed, config=given), (0, ranks))
    assert "lora-at-ranks (its ranks are those of other runs)" in agree(capsys)


def test_of_many_lines_the_smallest_p_can_still_be_small_enough(store, monkeypatch):
    asked = []
    found = Agreement(1, 1.0, 0.5, 0.5, 0.001)
    monkeypatch.setattr(allocations, "between", lambda sets, modules, shuffles: asked.append(shuffles) or found)
    for number in range(60):
        for seed, ranks in enumerate(([8, 1, 1, 1, 1, 1], [1, 8, 1, 1, 1, 1])):
            allocate(store.add(f"v{number}", seed), (0, ranks))
    allocations.build(read(["runs"]))
    assert set(asked) == {2400}
