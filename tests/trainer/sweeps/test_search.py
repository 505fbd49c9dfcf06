"""A search: trials are ordinary runs, some are pruned, processes share it, and it goes on where it was killed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from analysis.records import runs as reading
from analysis.tables import cells, footnotes
from analysis.tables import rows as table_rows
from tests.trainer.sweeping import ended, forked, rows, sweep, wait_for
from trainer import record as records
from trainer.errors import ConfigError
from trainer.sweeps import search

pytestmark = pytest.mark.slow

SEARCH = [
    *("sweep=search", "train.max_steps=4", "train.eval_every=2", "machine.save_every=1", "machine.threads=1"),
    *("variant.rank=choice(2,4)", "optim.lr=tag(log,interval(1e-3,1e-1))"),
]
PRUNE_ALL = ["~hydra.sweeper.pruner", "+hydra.sweeper.pruner={_target_:optuna.pruners.ThresholdPruner,lower:2.0}"]


def study_of(folder: Path, name: str = "search"):
    import optuna

    return optuna.load_study(study_name=name, storage=search.open_storage(str(folder / "search.journal")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("variant.rank=choice(2,4)", CategoricalDistribution([2, 4])),
        ("optim.schedule=linear,cosine", CategoricalDistribution(["linear", "cosine"])),
        ("optim.lr=interval(0.1,0.5)", FloatDistribution(0.1, 0.5)),
        ("optim.lr=tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("seed=range(0,3)", IntDistribution(0, 2)),
        ("seed=range(1,8,3)", IntDistribution(1, 7, step=3)),
        ("variant.rank=int(interval(2,9))", IntDistribution(2, 9)),
        ("optim.warmup=range(0.0,0.5,0.1)", FloatDistribution(0.0, 0.4, step=0.1)),
    ],
)
def test_hydras_sweeps_are_the_space(text, expected):
    fixed, space = search.split([OverridesParser.create().parse_override(text)])
    assert not fixed and list(space.values()) == [expected]


def test_a_search_over_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"no field is searched, allowed: choice\(…\)"):
        search.split([OverridesParser.create().parse_override("seed=1")])


def test_trials_are_ordinary_runs_and_a_search_goes_on_with_more(tiny_overrides, tmp_path, caplog):
    caplog.set_level("INFO", "trainer")
    study = tmp_path / "runs" / "test"
    sweep([*tiny_overrides, *SEARCH, "hydra.sweeper.trials=2"])
    assert "2 runs: 2 ran, 0 done already, 0 failed" in caplog.text
    sweep([*tiny_overrides, *SEARCH, "hydra.sweeper.trials=3"])
    assert "search search: 3 trials, 2 of them exist already" in caplog.text
    assert "1 runs: 1 ran, 0 done already, 0 failed" in caplog.text
    found = {record.run_id: record for record in map(records.read, records.find(study))}
    trials = study_of(study).trials
    assert len(found) == len(trials) == 3
    assert {(t.params["variant.rank"], t.value) for t in trials} == {
        (record.config["variant.rank"], record.metric.value) for record in found.values()
    }
    # The same run, asked for by a sweep, is done.
    caplog.clear()
    best = study_of(study).best_trial
    chosen = [f"{name}={value}" for name, value in best.params.items()]
    sweep([*tiny_overrides, *SEARCH[1:5], *chosen])
    assert "1 runs: 1 done, 0 failed, 0 to do" in caplog.text


def test_a_trial_whose_run_is_there_takes_its_value(tiny_overrides, tmp_path, caplog):
    caplog.set_level("INFO", "trainer")
    settings = [*tiny_overrides, *SEARCH[:5], "variant.rank=choice(2)", "hydra.sweeper.trials=2"]
    sweep(settings)
    assert "2 runs: 1 ran, 1 done already" in caplog.text
    first, second = study_of(tmp_path / "runs" / "test").trials
    assert first.value == second.value


def test_the_search_sees_the_selection_split_alone(carry_out, tmp_path):
    record = carry_out("data.protocol=split", "data.select_share=0.5", "train.eval_every=3")
    folder = tmp_path / "runs" / "test" / record.run_id
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (at,) = [row["eval/accuracy"] for row in logged if row["step"] == record.metric.step and "eval/accuracy" in row]
    assert search.selected(record, folder) == at == max(row.get("eval/accuracy", 0) for row in logged)


def test_pruned_runs_are_no_failures_and_can_be_carried_on(tiny_overrides, carry_out, tmp_path, caplog):
    caplog.set_level("INFO", "trainer")
    study = tmp_path / "runs" / "test"
    settings = [*tiny_overrides, *SEARCH, *PRUNE_ALL, "hydra.sweeper.trials=2"]
    sweep(settings)
    assert "2 runs: 0 ran, 0 done already, 2 pruned, 0 failed" in caplog.text
    found = [records.read(folder) for folder in records.find(study)]
    assert [(record.status, record.error) for record in found] == [
        ("pruned", "pruned by the search after step 2 of 4")
    ] * 2
    assert all(record.metric.value is None and not record.metrics for record in found)
    assert [trial.state for trial in study_of(study).trials] == [TrialState.PRUNED] * 2

    read = reading.read([study])
    assert len(read.pruned) == 2 and not read.failed and not read.done
    table = table_rows.build(read)
    said = [note.text for note in footnotes.build(read, table, cells.build(table))]
    assert any("2 runs were stopped by a search and are in no cell" in text for text in said)

    # Whoever wants one of them all the same goes on from where it was stopped.
    chosen = [f"{name}={value}" for name, value in study_of(study).trials[0].params.items()]
    sweep([*tiny_overrides, *SEARCH[1:5], *chosen])
    straight = carry_out(*SEARCH[1:5], *chosen, "study=straight")
    assert rows(study)[straight.run_id] == rows(tmp_path / "runs" / "straight")[straight.run_id]


def test_two_processes_share_a_search(tiny_overrides, tmp_path):
    study, log = tmp_path / "runs" / "test", tmp_path / "log"
    settings = [*tiny_overrides, *SEARCH, "hydra.sweeper.pruner=null", "hydra.sweeper.trials=4"]
    with forked(lambda: sweep(settings), log) as one, forked(lambda: sweep(settings), log) as two:
        assert (ended(one), ended(two)) == (0, 0), log.read_text()
    trials = study_of(study).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    assert len({trial.user_attrs["search"] for trial in trials}) == 2, "one of them did nothing"
    assert len(list(records.find(study))) == 4


def test_a_killed_search_goes_on_with_the_trial_it_was_in(tiny_overrides, tmp_path):
    study, log = tmp_path / "runs" / "test", tmp_path / "log"
    settings = [*tiny_overrides, *SEARCH, "train.max_steps=12", "hydra.sweeper.trials=2"]
    with forked(lambda: sweep(settings), log) as child:
        wait_for(child, lambda: list(study.glob("*/checkpoints/step-*")))
        os.kill(child, signal.SIGKILL)
        ended(child)
    (left,) = study_of(study).trials
    assert left.state == TrialState.RUNNING
    sweep(settings)
    first, second = study_of(study).trials
    assert first.params == left.params and {first.state, second.state} == {TrialState.COMPLETE}
    assert len(list(records.find(study))) == 2
