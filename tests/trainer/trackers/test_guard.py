"""A tracker that fails, hangs or dies costs a run one warning and nothing else."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import asdict

import psutil
import pytest
from omegaconf import OmegaConf

from tests.conftest import folder_of
from tests.trainer.trackers.disturbed import left_by, warnings
from trainer.errors import ConfigError
from trainer.sweeps import plan
from trainer.sweeps.plan import Planned
from trainer.trackers import guard
from trainer.trackers.tracker import RunInfo

pytestmark = pytest.mark.slow

TROUBLE = "tests.trainer.trackers.trouble.Trouble"


def overrides(how: str, timeout: float = 3.0) -> list[str]:
    return [f"+tracker._target_={TROUBLE}", f"+tracker.how='{how}'", f"+tracker.timeout={timeout}"]


@pytest.mark.parametrize("how", ["raises in start", "hangs in log", "dies in finish"])
def test_a_run_ends_as_it_would_have_without_its_tracker(how, carry_out, finished_run, tmp_path, caplog):
    plain = left_by(finished_run("variant=adalora", "study=plain"))
    folder = folder_of(carry_out("variant=adalora", *overrides(how, timeout=1.0)), tmp_path)
    disturbed = left_by(folder)
    assert (plain["row"].pop("study"), disturbed["row"].pop("study")) == ("plain", "test")
    assert disturbed == plain
    (warning,) = warnings(caplog)
    assert warning.startswith("tracker trouble: ")
    assert warning.endswith("; it is off for this run, whose own files are complete")


@pytest.fixture
def tracked(tmp_path, forked_hosts):
    """A run's folder with ten lines of metrics, and its tracker, at work."""
    lines = [json.dumps({"step": step, "train/task_loss": 1 / step}) + "\n" for step in range(1, 11)]
    before, started = set(psutil.Process().children()), list[guard.Guard]()

    def begun(how: str, timeout: float = 2.0) -> guard.Guard:
        folder = tmp_path / str(len(started)) / "0123456789ab"
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("".join(lines))
        tracker = {"_target_": TROUBLE, "how": how, "timeout": timeout}
        names = {group: {"name": group} for group in ("variant", "task", "model")}
        config = OmegaConf.create({"study": "test", "seed": 0, "tracker": tracker} | names)
        started.append(guard.begin(Planned(config, {}, folder.name, None, folder, None)))
        return started[-1]

    yield begun
    for each in started:
        each.end()
    assert set(psutil.Process().children()) <= before


SAYS = {  # what is said of each trouble; only what never answers is waited for
    "raises in start": "RuntimeError: no luck with this",
    "raises in log": "RuntimeError: no luck with this",
    "raises in finish": "RuntimeError: no luck with this",
    "hangs in start": "no answer within 2 s (start)",
    "hangs in log": "no answer within 2 s (log)",
    "hangs in finish": "no answer within 2 s (finish)",
    "stops in log": "no answer within 2 s (log)",
    "dies in start": "its process ended (exit code -9)",
    "dies in log": "its process ended (exit code -9)",
    "exits in finish": "its process ended (exit code 3)",
}


def test_trouble_is_one_warning_that_names_it_while_the_run_goes_on_and_leaves_no_process(tracked, caplog):
    at_work, begun = [], time.monotonic()
    for how, says in SAYS.items():  # all of them at once
        at_work.append(tracked(how, timeout=2.0 if "no answer" in says else 60.0))
        at_work[-1].name = how
    expected = {
        how: f"tracker {how}: {says}; it is off for this run, whose own files are complete"
        for how, says in SAYS.items()
    }
    known = sorted(line for how, line in expected.items() if "finish" not in how)
    while len(warnings(caplog)) < len(known) and time.monotonic() < begun + 30:
        time.sleep(0.02)
    assert sorted(warnings(caplog)) == known, "what fails or hangs before the run's end is noticed before it"
    for each in at_work:
        each.end()
    assert time.monotonic() - begun < 30
    assert sorted(warnings(caplog)) == sorted(expected.values())


def test_what_a_library_prints_stays_out_of_the_way(tracked, tmp_path, caplog):
    tracked("shouts in log", timeout=30).end()
    assert not warnings(caplog)
    assert (tmp_path / "0" / "finished").exists()


def test_a_key_in_an_error_is_blotted_out(tracked, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "0123456789abcdef")
    tracked("raises in log", timeout=30).end()
    (warning,) = warnings(caplog)
    assert "RuntimeError: no luck with ***;" in warning
    assert "0123456789abcdef" not in (tmp_path / "0" / "0123456789ab" / guard.LOG).read_text()


def test_a_class_that_is_no_tracker_is_refused():
    config = OmegaConf.create({"tracker": {"_target_": TROUBLE.replace("Trouble", "NoTracker")}})
    with pytest.raises(ConfigError, match=r"tracker\._target_: 'NoTracker' is not a tracker: it has no check\(\)"):
        plan.tracker(config)


def test_a_misspelt_setting_is_refused_with_the_names_that_exist():
    config = OmegaConf.create({"tracker": {"_target_": TROUBLE, "hwo": 1}})
    with pytest.raises(ConfigError, match=r"tracker\.hwo: 1, Trouble has no such field, allowed: how, timeout"):
        plan.tracker(config)


def test_a_tracker_that_hangs_when_its_run_is_gone_ends_all_the_same(tmp_path):
    run = RunInfo(tmp_path, "0123456789ab", "test", "variant", "task", "model", 0, {}, 0)
    order = {
        "tracker": {"_target_": TROUBLE, "how": "hangs in finish", "timeout": 0.3},
        "run": asdict(run) | {"folder": str(tmp_path)},
        "name": "trouble",
        "seen": {},
    }
    process = guard._start(subprocess.DEVNULL)
    process.communicate(json.dumps(order).encode() + b"\n", timeout=60)  # then it finds its input closed
    assert process.returncode == 1
