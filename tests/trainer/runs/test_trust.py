"""A record is believed for what is in it, not for where it lies; one that isn't is kept, and its run done again."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.conftest import folder_of
from trainer import record as records
from trainer.sweeps.plan import plan


@pytest.fixture
def done(finished_run):
    """A finished run's folder."""
    return finished_run("train.max_steps=2")


def edited(text: str, **changes) -> str:
    return json.dumps(json.loads(text) | {name.replace("__", "."): value for name, value in changes.items()}, indent=1)


SPOILT = {
    "a byte-order mark": lambda text: "\ufeff" + text,
    "a value twice": lambda text: text.replace('"seed": 0', '"seed": 0,\n "metric.value": 0.99'),
    "another seed": lambda text: edited(text, seed=7),
    "another seed everywhere": lambda text: edited(text, seed=7, config__seed=7, identity__seed=7),
    "another study": lambda text: edited(text, study="best"),
    "another value": lambda text: edited(text, metric__value=0.99),
    "another value everywhere": lambda text: edited(text, metric__value=0.99, metrics__accuracy=0.99),
    "another setting": lambda text: edited(text, config__optim__lr=1.0),
    "of a newer version and edited": lambda text: edited(text, version=9),
    "no JSON": lambda text: text[:100],
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_record_that_is_not_believed_is_kept_aside_with_its_run(
    carry_out, configured, tiny_overrides, done, caplog, spoil
):
    path = done / "record.json"
    before = records.read(done)
    text = spoil(path.read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8")
    weights = (done / "adapter" / "state.safetensors").read_bytes()
    planned = plan(configured([*tiny_overrides, "train.max_steps=2"]))
    assert planned.record is None and path.exists() and str(path) in caplog.text, "a plan changes nothing"
    again = carry_out("train.max_steps=2")
    assert again.run_id == before.run_id and again.metric == before.metric
    (kept,) = (done.parent / records.REPLACED).iterdir()
    assert (kept / "record.json").read_text(encoding="utf-8") == text
    assert (kept / "adapter" / "state.safetensors").read_bytes() == weights
    assert f"{path}: not trusted, moved to {kept}" in caplog.messages
    assert list(records.find(done.parent)) == [str(done)], "no table finds what was kept"
    assert plan(configured([*tiny_overrides, "train.max_steps=2"])).done


def test_the_record_of_another_run_is_not_believed(carry_out, configured, tiny_overrides, done, tmp_path, caplog):
    other = folder_of(carry_out("train.max_steps=2", "seed=5"), tmp_path)
    mine = (done / "record.json").read_bytes()
    shutil.copy(other / "record.json", done / "record.json")
    planned = plan(configured([*tiny_overrides, "train.max_steps=2"]))
    assert planned.record is None
    line = f"{done / 'record.json'}: run_id: {other.name!r} in the folder of {done.name!r}; the run is repeated"
    assert line in caplog.messages
    carry_out("train.max_steps=2")
    found = records.read(done)
    assert found.run_id == done.name and found.seed == 0 and mine != b""
    (kept,) = (done.parent / records.REPLACED).iterdir()
    assert (kept / "record.json").read_bytes() == (other / "record.json").read_bytes()


def test_a_study_that_was_copied_counts_and_is_said_once(carry_out, configured, tiny_overrides, tmp_path, caplog):
    for seed in (0, 1):
        carry_out("train.max_steps=2", f"seed={seed}")
    shutil.copytree(tmp_path / "runs" / "test", tmp_path / "runs" / "copy")
    for seed in (0, 1):
        assert plan(configured([*tiny_overrides, "train.max_steps=2", f"seed={seed}", "study=copy"])).done
    said = [line for line in caplog.messages if "study" in line]
    assert said == [f"{tmp_path / 'runs' / 'copy'}: contains records of the study 'test'; they are used unchanged"]


def test_the_record_of_a_run_that_failed_makes_room(carry_out, done):
    row = records.read(done)
    failed = records.Record(row.run_id, row.study, row.variant, row.task, row.model, row.seed, "failed", "no luck")
    failed.config, failed.identity = row.config, row.identity
    records.write(failed, done)
    assert carry_out("train.max_steps=2").status == "done"
    assert not (done.parent / records.REPLACED).exists()


@pytest.mark.parametrize("name", [".", "linked"])
def test_a_folder_may_be_called_in_other_ways(done, tmp_path, monkeypatch, name):
    (tmp_path / "linked").symlink_to(done)
    monkeypatch.chdir(done if name == "." else tmp_path)
    assert records.misplaced(done.name, name) is None
    assert records.misplaced("0" * 12, name) is not None
