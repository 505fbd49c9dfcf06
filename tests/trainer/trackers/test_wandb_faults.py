"""W&B in trouble: its service killed or stopped, its folder closed, no network, a key that must not be seen."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import DIVERGING, folder_of
from tests.trainer.sweeping import command, ended, forked, started, wait_for
from tests.trainer.trackers.disturbed import left_by, warnings
from tests.trainer.trackers.inspected import runs_in
from tests.trainer.trackers.trouble import Trouble
from trainer.errors import ConfigError, RunFailed
from trainer.loop.loop import Loop
from trainer.runs.run import run
from trainer.sweeps.plan import plan
from trainer.trackers import guard

pytestmark = pytest.mark.slow

KEY = "a1b2c3d4e5" * 4  # forty characters, as W&B's are


def service() -> psutil.Process:
    """W&B's own process, which the tracker's process has started."""
    (found,) = (child for child in psutil.Process().children(recursive=True) if child.name() == "wandb-core")
    return found


@pytest.fixture
def at_step_five(monkeypatch, forked_hosts):
    """Does something to W&B's service at the fifth step, once it is there. From then on two seconds are waited for."""
    met: list[psutil.Process] = []

    def do(number: int) -> list[psutil.Process]:
        end_step, begin = Loop.end_step, guard.begin
        begun: list[guard.Guard] = []
        monkeypatch.setattr(guard, "begin", lambda planned: begun.append(begin(planned)) or begun[-1])

        def disturbed(self, index):
            end_step(self, index)
            if index != 5:
                return
            until = time.monotonic() + 60
            while not (self.selection.best.folder.parent / "tracker.json").exists():
                assert time.monotonic() < until, "W&B has not started"
                time.sleep(0.05)
            met.append(service())
            met[0].send_signal(number)
            begun[-1].timeout = 2.0

        monkeypatch.setattr(Loop, "end_step", disturbed)
        return met

    return do


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_service_that_dies_or_stops_costs_one_warning(
    number, carry_out, finished_run, at_step_five, tmp_path, caplog
):
    settings = ["variant=adalora", "machine.log_every=1"]
    plain = left_by(finished_run(*settings, "study=plain"))
    met = at_step_five(number)
    disturbed = left_by(folder_of(carry_out(*settings, "tracker=wandb"), tmp_path))
    plain["row"].pop("study"), disturbed["row"].pop("study")
    assert disturbed == plain
    (warning,) = warnings(caplog)
    assert warning.startswith("tracker wandb: ")
    psutil.wait_procs(met, timeout=10)
    assert not met[0].is_running()


def test_a_folder_that_can_not_be_written_costs_one_warning(carry_out, forked_hosts, tmp_path, caplog):
    # Not even root can make a folder there; one that is only read-only would not stop root.
    record = carry_out("tracker=wandb", "tracker.dir=/proc/loratory")
    (warning,) = warnings(caplog)
    assert warning.startswith("tracker wandb: FileNotFoundError: ")
    assert record.status == "done" and not (folder_of(record, tmp_path) / "tracker.json").exists()


WHY_OFFLINE = [
    ("WANDB_API_KEY", "too-short", "offline, the configured key is not a valid W&B key, "),
    ("WANDB_MODE", "offline", "offline as set by W&B's own settings or WANDB_MODE, logs to "),
    ("WANDB_MODE", "disabled", "disabled as set by W&B's own settings or WANDB_MODE"),
]


def test_without_a_network_the_run_is_kept_offline_and_no_key_reaches_a_file_or_the_terminal(
    carry_out, forked_hosts, tmp_path, caplog, capfd, monkeypatch
):
    caplog.set_level("INFO", "trainer")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", "hf_" + KEY)

    def without_network() -> None:
        folder = folder_of(carry_out("tracker=wandb", "tracker.timeout=12"), tmp_path)  # half of it to reach W&B
        assert len(warnings(caplog)) == 1, warnings(caplog)
        (warning,) = warnings(caplog)
        because = f"tracker wandb: logs offline to {folder / 'wandb'}, because W&B could not be reached: "
        assert warning.startswith(because), warning
        (logged,) = runs_in(folder)
        assert logged.folder.name.startswith("offline-run-")
        assert logged.exit_code == 0 and logged.summary["metric/value"] is not None

    log = tmp_path / "log"
    with forked(without_network, log) as child:  # it waits most of its time
        for seed, (variable, value, says) in enumerate(WHY_OFFLINE, start=4):
            with monkeypatch.context() as patched:
                patched.setenv(variable, value)
                carry_out("tracker=wandb", "train.max_steps=2", f"seed={seed}")
            (said,) = [text for text in caplog.messages if text.startswith("tracker ")]
            assert said.startswith(f"tracker wandb: {says}"), (variable, value)
            caplog.clear()
        carry_out("+tracker._target_=tests.trainer.trackers.trouble.Trouble", "+tracker.how='raises in log'", "seed=2")
        with pytest.raises(RunFailed):
            carry_out("tracker=wandb", "tracker.mode=offline", "seed=3", *DIVERGING, "optim.lr=1e30")
        assert ended(child) == 0, log.read_text()
    assert len(list(tmp_path.rglob("record.json"))) == 3 + len(WHY_OFFLINE)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 30
    assert not [path for path in written if KEY.encode() in path.read_bytes()]
    said = capfd.readouterr()
    assert KEY not in said.out + said.err + caplog.text


def test_a_run_that_is_killed_goes_on_with_its_curve_and_leaves_no_process(tiny_overrides, configured, tmp_path):
    held = tmp_path / "held"
    held.touch()
    overrides = [*tiny_overrides, "variant._target_=tests.trainer.trackers.held.Held", f"+variant.held={held}"]
    overrides += ["tracker=wandb", "machine.log_every=1", "machine.save_every=5"]
    planned = plan(configured(overrides))
    with started(overrides, tmp_path / "log", flags=()) as child:
        wait_for(child, lambda: sent(planned.folder) >= 7)
        (host,) = (each for each in psutil.Process(child).children() if "trainer.trackers.host" in each.cmdline())
        os.kill(child, signal.SIGKILL)
        ended(child)
    gone, alive = psutil.wait_procs([host], timeout=60)
    assert gone and not alive
    (cut,) = runs_in(planned.folder)
    assert cut.exit_code == 255

    held.unlink()
    run(plan(configured(overrides)), [])
    cut, rest = runs_in(planned.folder)
    assert cut.run["run_id"] == rest.run["run_id"]
    logged = [row for part in (cut, rest) for row in part.history if "epoch" in row]
    rows = [json.loads(line) for line in (planned.folder / "metrics.jsonl").read_text().splitlines()]
    assert len(cut.history) > 6 and len(rest.history) > 1
    assert logged == rows


def sent(folder: Path) -> int:
    try:
        return json.loads((folder / "tracker.json").read_text())["sent"]["metrics.jsonl"]
    except FileNotFoundError:
        return 0


def test_the_process_ends_whatever_the_tracker_does(tiny_overrides, forked_hosts, tmp_path):
    def call(how: str) -> None:
        atexit._clear()  # of the tests' own
        tracker = [f"+tracker._target_={Trouble.__module__}.Trouble", f"+tracker.how='{how}'", "+tracker.timeout=2"]
        command([*tiny_overrides, *tracker, "train.max_steps=2", f"study={how.replace(' ', '_')}"], flags=())
        threading._shutdown()  # what an interpreter waits for when it ends
        atexit._run_exitfuncs()

    logs = {how: tmp_path / how for how in ("hangs in start", "hangs in finish")}
    with contextlib.ExitStack() as both:
        children = {how: both.enter_context(forked(lambda how=how: call(how), log)) for how, log in logs.items()}
        for how, log in logs.items():
            assert ended(children[how]) == 0, log.read_text()
            assert log.read_text().count("no answer within 2 s") == 1, how


@pytest.mark.parametrize(
    "settings, says",
    [
        (
            ["+tracker.api_key=" + KEY],
            "tracker.api_key: no such setting, because a config is copied into every run's folder",
        ),
        (["+tracker.options.token=" + KEY], "tracker.options.token: no such setting"),
        (["tracker.notes=${oc.env:WANDB_API_KEY}"], "tracker.notes: holds the value of the environment variable"),
        (["study=${oc.env:WANDB_API_KEY}"], "study: holds the value of the environment variable WANDB_API_KEY"),
    ],
)
def test_a_key_in_a_config_is_refused_by_name(settings, says, carry_out, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with pytest.raises(ConfigError) as error:
        carry_out("tracker=wandb", *settings)
    assert says in str(error.value) and KEY not in str(error.value)
    assert not (tmp_path / "runs").exists()
