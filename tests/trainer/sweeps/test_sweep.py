"""Sweeps, as a user starts them: skipped when done, going on after a failure."""

from __future__ import annotations

import pytest

from tests.conftest import DIVERGING
from tests.trainer.sweeping import finished
from trainer import record as records

pytestmark = pytest.mark.slow


def test_a_sweep_runs_what_is_missing_and_goes_on_after_a_failure(tiny_overrides, tmp_path):
    base = [text for text in tiny_overrides if not text.startswith("optim.lr")]
    code, output = finished([*base, *DIVERGING, "variant=lora", "optim.lr=1e-2,1e30,1e-3"], tmp_path / "log")
    assert code == 1, output
    assert "3 runs: 0 done, 0 failed, 3 to do" in output
    assert "failed: RunFailed: train.max_skipped: " in output
    found = [records.read(path) for path in records.find(tmp_path / "runs")]
    assert sorted(record.status for record in found) == ["done", "done", "failed"]
    (failed,) = [record for record in found if record.status == "failed"]
    assert failed.error.startswith("train.max_skipped: ")
    assert failed.metric.value is None and not failed.metrics

    again = [*base, *DIVERGING, "variant=lora", "optim.lr=1e-2,1e-3,1e30,1e-4"]
    code, output = finished(again, tmp_path / "log")
    assert code == 1, output
    assert "4 runs: 2 done, 1 failed, 1 to do (failed runs are repeated)" in output
    assert output.count("done already: ") == 2 and output.count("running: ") == 2

    # In parallel, what fails fails in a worker, an interpreter of its own that imports everything; the only one here.
    parallel = ["hydra/launcher=cores", "hydra.launcher.n_jobs=2", "optim.lr=1e-2,1e30"]
    code, output = finished([*base, *DIVERGING, "variant=lora", *parallel], tmp_path / "log")
    assert code == 1, output
    assert "2 runs: 1 done, 1 failed, 0 to do (failed runs are repeated)" in output
    assert "failed: RunFailed: train.max_skipped: " in output and output.count("running: ") == 1


def test_a_misspelt_job_stops_the_sweep_before_it_starts(tiny_overrides, tmp_path):
    code, output = finished([*tiny_overrides, "variant=lora,haed"], tmp_path / "log")
    assert code == 1
    assert "invalid: variant=haed: variant: 'haed', allowed: adalora, " in output
    assert not list(records.find(tmp_path))


@pytest.mark.parametrize("content", ["{", '{"version": 1}', ""])
def test_a_corrupt_record_is_reported_and_the_run_done_again(configured, tiny_overrides, caplog, content):
    from trainer.sweeps.plan import plan

    config = configured(tiny_overrides)
    folder = plan(config).folder
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(content)
    again = plan(config)
    assert not again.done and not again.failed
    assert "record.json: " in caplog.text and "the run is repeated" in caplog.text


def test_a_run_that_another_process_carries_out_is_left_alone(configured, tiny_overrides, tmp_path):
    from trainer.sweeps.plan import plan

    run = plan(configured([*tiny_overrides, "train.max_steps=2"]))
    with run.locked():
        code, output = finished([*tiny_overrides, "train.max_steps=2", "seed=0,1"], tmp_path / "log")
        assert code == 1 and "another process is carrying out this run" in output
        assert records.read(run.folder) is None, "no failed record for a run that is in good hands"
    assert len(list(records.find(tmp_path / "runs"))) == 1
    code, output = finished([*tiny_overrides, "train.max_steps=2", "seed=0,1"], tmp_path / "log")
    assert code == 0 and "2 runs: 1 done, 0 failed, 1 to do" in output
