"""Launchers for clusters, each really running; Slurm's own commands are played by `fake_slurm`.

The interpreters that submitit starts are forks of this process, see `interpreter`; those of Ray import everything.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.trainer import interpreter
from tests.trainer.sweeping import ended, finished, rows, started, wait_for
from tests.trainer.sweeps import fake_slurm
from trainer import record as records
from trainer.machine import lock

pytestmark = pytest.mark.slow

# 60 steps, so that a run can be stopped after its first line is logged and long before its end
LONG = ["train.epochs=10", "train.eval_every=20", "machine.save_every=25", "machine.log_every=2", "machine.threads=1"]


@pytest.fixture
def python(monkeypatch):
    """What submitit takes for Python."""
    with interpreter.command() as path:
        monkeypatch.setattr(sys, "executable", str(path))
        yield path


def preempted(overrides: list[str], study: Path, log: Path) -> str:
    """The output of a sweep of which the first run that trains is preempted."""
    with started(overrides, log) as sweep:
        preempt(sweep, study)
        code = ended(sweep)
    assert code == 0, log.read_text()
    return log.read_text()


def straight(carry_out, *overrides: str) -> None:
    """The same runs, undisturbed and in this process, as the study `straight`."""
    for seed in (0, 1):
        carry_out(*LONG, f"seed={seed}", "study=straight", *overrides)


def preempt(sweep: int, study: Path) -> None:
    """Sends SIGUSR2, as submitit asks Slurm to, to the process of the first run that trains."""

    def sent() -> bool:
        for lines in study.glob("*/metrics.jsonl"):
            owner = lock.owner(lines.parent)  # the lock says which process it is
            if owner is not None:
                os.kill(owner.pid, signal.SIGUSR2)
                return True
        return False

    wait_for(sweep, sent)


def test_submitit_on_one_machine_queues_a_preempted_run_again_which_ends_as_if_undisturbed(
    tiny_overrides, carry_out, python, tmp_path
):
    carry_out(*LONG, "study=straight")
    study = tmp_path / "runs" / "cut"
    overrides = [*tiny_overrides, *LONG, "study=cut", "hydra/launcher=subprocesses"]
    output = preempted(overrides, study, tmp_path / "log")
    assert "1 runs: 1 ran, 0 done already, 0 failed, 0 locked elsewhere" in output
    log = "".join(path.read_text() for path in study.glob(".submitit/*/*_log.*"))
    assert "SIGUSR2: the run stops after this step, with a checkpoint" in log and "Requeued job" in log
    assert log.count("running: ") == 2 and log.count("done: ") == 1
    assert rows(study) == rows(tmp_path / "runs" / "straight")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder with what Slurm was told; its commands are in PATH."""
    place, commands = tmp_path / "slurm", tmp_path / "bin"
    place.mkdir(), commands.mkdir()
    for name in ("sbatch", "srun", "scontrol", "sacct"):
        (commands / name).write_text(f"#!{sys.executable}\n" + Path(fake_slurm.__file__).read_text())
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(place))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield place
    for pid in (place / "pids").read_text().split() if (place / "pids").exists() else ():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid), signal.SIGKILL)


def test_slurm_gets_an_array_of_what_is_missing_and_preempted_runs_go_on(
    tiny_overrides, carry_out, slurm, python, tmp_path
):
    straight(carry_out)
    study = tmp_path / "runs" / "cut"
    carry_out(*LONG, "seed=2", "study=cut")
    options = [
        "partition=long",
        "mem_gb=7",
        "timeout_min=90",
        "signal_delay_s=45",
        "account=lab",
        "array_parallelism=1",
    ]
    options = [f"hydra.launcher.{option}" for option in [*options, "cpus_per_task=1", 'setup=["export MARK=1"]']]
    overrides = [*tiny_overrides, *LONG, "seed=0,1,2", "study=cut", "hydra/launcher=slurm", *options]
    output = preempted(overrides, study, tmp_path / "log")
    assert "3 runs: 1 done, 0 failed, 2 to do" in output
    assert "3 runs: 2 ran, 1 done already, 0 failed, 0 locked elsewhere" in output
    script = (slurm / "script.sh").read_text()
    told = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script, re.M))
    expected = {
        "array": "0-1%1",
        "partition": "long",
        "mem": "7GB",
        "time": "90",
        "account": "lab",
        "cpus-per-task": "1",
        "gpus-per-node": "1",
        "job-name": "loratory",
        "signal": "USR2@45",
        "nodes": "1",
    }
    assert told.items() >= expected.items(), script
    assert "export MARK=1" in script
    assert len((slurm / "requeued").read_text().split()) == 1
    found = rows(study)
    assert {name: found[name] for name in rows(tmp_path / "runs" / "straight")} == rows(tmp_path / "runs" / "straight")
    assert len(found) == 3


def skip_where_ray_does_not_start() -> None:
    probe = "import ray; ray.init(include_dashboard=False, num_cpus=1, log_to_driver=False)"
    try:
        subprocess.run([sys.executable, "-c", probe], check=True, timeout=120, capture_output=True)
    except subprocess.SubprocessError as error:
        pytest.skip(f"ray doesn't start here: {type(error).__name__}")


def test_ray_runs_a_sweep_on_this_machine(tiny_overrides, carry_out, tmp_path):
    pytest.importorskip("ray")
    quick = ["train.max_steps=4"]
    for seed, study in ((0, "straight"), (1, "straight"), (1, "ray")):  # one is left to do: a worker imports everything
        carry_out(*quick, "machine.threads=1", f"seed={seed}", f"study={study}")
    command = [*tiny_overrides, *quick, "seed=0,1", "study=ray", "hydra/launcher=ray_cluster"]
    code, output = finished(command, tmp_path / "log")
    if code:
        skip_where_ray_does_not_start()
    assert code == 0, output
    assert "2 runs: 1 ran, 1 done already, 0 failed, 0 locked elsewhere" in output
    assert rows(tmp_path / "runs" / "ray") == rows(tmp_path / "runs" / "straight")
    assert all(records.read(folder).hardware["threads"] == 1 for folder in records.find(tmp_path / "runs" / "ray"))
