"""Several runs at once on one machine, and several sweeps at once over one study."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException
from hydra.types import RunMode
from joblib.externals.loky.backend import context
from omegaconf import OmegaConf, open_dict

from tests.conftest import ROOT
from tests.trainer.sweeping import PATIENCE, ended, finished, rows, started, wait_for
from tests.variants.pairwise import covering
from trainer import config as run_config
from trainer import record as records
from trainer.errors import Locked, one_line
from trainer.machine import lock, signals
from trainer.sweeps import sweep as sweeps
from trainer.sweeps.plan import plan

pytestmark = pytest.mark.slow

QUICK = ["variant=lora,head", "seed=0,1", "train.max_steps=4", "machine.save_every=2"]
JOBLIB = ["hydra/launcher=cores", "hydra.launcher.n_jobs=2"]


def test_two_parallel_sweeps_at_once_run_each_run_once_and_end_as_one_sweep_does(tiny_overrides, tmp_path, monkeypatch):
    share = max(1, sweeps.cores() // 2)
    code, output = finished([*tiny_overrides, *QUICK, "study=alone", f"machine.threads={share}"], tmp_path / "alone")
    assert code == 0 and "4 runs: 4 ran, 0 done already, 0 failed, 0 locked elsewhere" in output, output

    monkeypatch.setattr(context, "_DEFAULT_START_METHOD", "fork")  # so that no worker has to import anything
    logs, settings = (tmp_path / "one", tmp_path / "two"), [*tiny_overrides, *QUICK, *JOBLIB, "study=both"]
    with started(settings, logs[0]) as one, started(settings, logs[1]) as two:
        codes = [ended(child) for child in (one, two)]
    outputs = [log.read_text() for log in logs]
    said = "".join(outputs)
    assert said.count("running: ") == said.count("done: ") == 4, said  # in all, whoever did it
    for code, output in zip(codes, outputs, strict=True):
        assert code == ("skipped: " in output), output
        assert "another process is carrying out this run (process " in output or "skipped: " not in output
    assert rows(tmp_path / "runs" / "both") == rows(tmp_path / "runs" / "alone")
    found = [records.read(folder) for folder in records.find(tmp_path / "runs" / "both")]
    assert {record.hardware["threads"] for record in found} == {share}
    for folder in records.find(tmp_path / "runs" / "both"):
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == len(set(lines)), "two processes wrote into one run"


def test_a_sweep_that_is_asked_to_stop_waits_for_the_checkpoints_of_its_workers(tiny_overrides, tmp_path, monkeypatch):
    monkeypatch.setattr(context, "_DEFAULT_START_METHOD", "fork")
    settings = ["variant=lora", "seed=0,1", "train.max_steps=4000", "machine.save_every=9999", "machine.log_every=1"]
    study = tmp_path / "runs" / "test"
    with started([*tiny_overrides, *JOBLIB, *settings], tmp_path / "log") as child:
        wait_for(child, lambda: len(list(study.glob("*/metrics.jsonl"))) == 2)
        os.kill(child, signal.SIGTERM)
        assert ended(child) == 128 + signal.SIGTERM
    made = [(path / "metrics.jsonl").read_text().splitlines()[-1] for path in sorted(study.glob("[!.]*"))]
    kept = [path.name for path in sorted(study.glob("*/checkpoints/step-*"))]
    assert kept == [f"step-{json.loads(line)['step']:08d}" for line in made] and len(kept) == 2


def test_a_second_signal_does_not_wait_for_workers():
    def running() -> list[tuple[str, int]]:
        os.kill(os.getpid(), signal.SIGTERM)
        return [("run", os.getpid())]

    with pytest.raises(signals.Interrupted, match="SIGTERM again"), signals.passing_on(running):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("order", [(signal.SIGINT, signals.PASSED_ON), (signals.PASSED_ON, signal.SIGTERM)])
def test_a_signal_that_a_sweep_passes_on_is_not_counted_beside_the_runs_own(order):
    def run() -> None:
        with signals.listening():
            for number in order:
                os.kill(os.getpid(), number)

    with pytest.raises(signals.Interrupted) as stop:
        run()
    (own,) = {*order} - {signals.PASSED_ON}
    assert stop.value.text == own.name


@pytest.mark.parametrize(
    ("launcher", "expected"),
    [
        ({"n_jobs": 3}, 4),
        ({"n_jobs": -1}, 1),
        ({"n_jobs": 1}, None),  # one at a time has the machine for itself
        ({"n_jobs": 100}, 1),
        ({"cpus_per_task": 6}, 6),
        ({"cpus_per_task": None}, None),
        ({"ray": {"remote": {"num_cpus": 2}}}, 2),
        ({"ray": {"init": {}}}, None),
        ({}, None),
    ],
)
def test_jobs_side_by_side_share_the_cores(monkeypatch, launcher, expected):
    monkeypatch.setattr(sweeps, "cores", lambda: 12)
    assert sweeps.threads(OmegaConf.create({"_target_": "x.Launcher", **launcher})) == expected


def test_submitit_on_one_machine_starts_as_many_runs_as_have_cores(monkeypatch):
    monkeypatch.setattr(sweeps, "cores", lambda: 12)
    launcher = OmegaConf.create({"_target_": "x.LocalLauncher", "cpus_per_task": 4})
    assert sweeps.side_by_side(launcher) == 3 and sweeps.threads(launcher) == 4


def test_a_run_that_is_carried_out_is_held(tmp_path):
    with lock.locked(tmp_path / "study" / "run"):
        begin = time.monotonic()
        with (
            pytest.raises(Locked, match="another process is carrying out this run"),
            lock.locked(tmp_path / "study/run"),
        ):
            pass
        assert time.monotonic() - begin < lock.LEASE / 2, "a lease is waited for"
    with lock.locked(tmp_path / "study" / "run"):
        pass


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path):
    ready, tell = os.pipe()
    if (child := os.fork()) == 0:
        with lock.locked(tmp_path / "run"):
            os.write(tell, b"x")
            time.sleep(60)
    os.read(ready, 1)
    with pytest.raises(Locked, match=f"process {child} on "), lock.locked(tmp_path / "run"):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / ".locks" / "run.lease").exists()
    begin = time.monotonic()
    with lock.locked(tmp_path / "run"):
        assert time.monotonic() - begin < lock.LEASE / 2, "a lease is waited for"


@pytest.fixture
def lease_of_another_host(tmp_path, monkeypatch):
    """A lease as a process of another machine would have left it; the file system passes no flock on."""
    monkeypatch.setattr(lock, "LEASE", 1.0)
    place = tmp_path / ".locks" / "run.lease"
    with lock.locked(tmp_path / "run"):
        text = place.read_text()
    assert socket.gethostname() in text
    place.write_text(text.replace(socket.gethostname(), "another-machine"))
    return place


def test_a_lease_of_another_host_is_respected_while_it_is_renewed(tmp_path, lease_of_another_host):
    with pytest.raises(Locked, match=r"process \d+ on another-machine"), lock.locked(tmp_path / "run"):
        pass


def test_a_lease_of_another_host_that_nobody_renews_is_taken_over(tmp_path, lease_of_another_host):
    old = time.time() - 60
    os.utime(lease_of_another_host, (old, old))
    begin = time.monotonic()
    with lock.locked(tmp_path / "run"):
        assert time.monotonic() - begin >= lock.LEASE  # by this machine's clock alone


def test_a_lease_of_another_host_from_a_time_to_come_is_taken_over_unless_it_is_renewed(
    tmp_path, lease_of_another_host, caplog
):
    ahead = time.time() + 3600
    os.utime(lease_of_another_host, (ahead, ahead))
    begin = time.monotonic()
    with lock.locked(tmp_path / "run"):
        assert time.monotonic() - begin >= lock.LEASE
    (line,) = caplog.messages
    assert re.search(r"run\.lease: renewed 3\d{3} s in the future by this clock; taken over unless it is renewed", line)


def test_who_lost_the_lease_stops_and_saves_nothing(tmp_path, lease_of_another_host):
    lease_of_another_host.unlink()
    with signals.listening(), lock.locked(tmp_path / "run"):
        signals.check()
        lease_of_another_host.unlink()
        until = time.monotonic() + PATIENCE
        while signals._request is None and time.monotonic() < until:
            time.sleep(0.01)
        assert not signals.asked(), "no checkpoint is written into what is another process's"
        with pytest.raises(signals.Interrupted, match="another process has taken this run over") as stop:
            signals.check()
    assert stop.value.exit_code == 1


def test_the_configs_of_a_sweep_are_those_that_hydra_composes(tiny_overrides):
    run_config.register()
    swept = {
        "variant": ["lora", "adalora", "full"],
        "seed": ["0", "3"],
        "optim.lr": ["1e-3", "2e-3"],
        "task.metrics": ["[accuracy]", "[f1]"],
        "optim.head_lr": ["null", "1e-2"],
        "train.eval_every": ["epoch", "3"],
        "study": ["a", "b"],
    }
    sizes = [len(values) for values in swept.values()]
    pairs = covering({name: range(size) for name, size in zip(swept, sizes, strict=True)})
    numbers = [sum(place * math.prod(sizes[i + 1 :]) for i, place in enumerate(row)) for row in pairs]
    texts = [*tiny_overrides, *(f"{name}={','.join(values)}" for name, values in swept.items())]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], RunMode.MULTIRUN)
        runs = sweeps.Runs(loader, master, sweeps.product(loader, texts))
        assert len(runs) == 3 * 2**6
        for number in [*numbers, 0, len(runs) - 1]:  # there and back
            by_hydra = loader.load_sweep_config(master, runs.jobs[number])
            with open_dict(by_hydra):
                del by_hydra["hydra"]
            assert runs.config(number) == by_hydra
            assert runs.plan(number).run_id == plan(by_hydra).run_id


@pytest.mark.parametrize("name", ["joblib", "submitit_local", "submitit_slurm", "ray"])
def test_a_launcher_that_is_not_installed_is_named_with_its_extra(name):
    extra = name.partition("_")[0]
    error = MissingConfigException("a long text", missing_cfg_file=f"hydra/launcher/{name}")
    assert one_line(error) == (
        f"hydra/launcher/{name}: not installed; install it with: pip install 'loratory[{extra}]'"
    )
