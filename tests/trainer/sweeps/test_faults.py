"""What goes wrong around a sweep, and that nothing is lost or done twice by it.

Whatever happens on the way, a sweep that is started again until it is through ends with the records of one that nothing
happened to.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hydra.core.plugins import Plugins
from joblib.externals.loky.backend import context
from joblib.externals.loky.process_executor import TerminatedWorkerError
from safetensors import SafetensorError

from tests.conftest import tiny_run
from tests.trainer.sweeping import ended, finished, forked, rows, sweep, wait_for
from trainer import record as records
from trainer.errors import ConfigError
from trainer.loop.checkpoints import Checkpoints
from trainer.loop.loop import Loop
from trainer.machine import lock, signals
from variants.core import state_files
from variants.lora import LoRA

pytestmark = pytest.mark.slow

SWEEP = ["seed=0,1,2", "train.max_steps=8", "train.eval_every=4", "machine.save_every=1", "machine.threads=1"]


@pytest.fixture(scope="module")
def moments() -> random.Random:
    return random.Random(0)


@pytest.fixture(scope="module")
def undisturbed(tiny_model, tiny_task, tmp_path_factory):
    """The rows of `SWEEP` with further overrides when nothing happens; made once for all tests."""

    @functools.cache
    def carried_out(*overrides: str) -> dict[str, dict]:
        folder = tmp_path_factory.mktemp("undisturbed")
        sweep([*tiny_run(tiny_model, tiny_task, folder), *SWEEP, *overrides, "study=undisturbed"])
        return rows(folder / "runs" / "undisturbed")

    return carried_out


def wait_for_a_run(child: int, study: Path) -> None:
    """Until the fork carries out a run, or has ended."""

    def carries_out() -> bool:
        leases = [path.with_suffix("") for path in study.glob(".locks/*.lease")]
        owners = [lock.owner(study / lease.name) for lease in leases]
        return any(owner is not None and owner.pid == child for owner in owners)

    with contextlib.suppress(ChildProcessError):
        wait_for(child, carries_out)


def test_killed_and_asked_to_stop_at_twelve_moments_it_ends_as_undisturbed(
    tiny_overrides, tmp_path, undisturbed, moments
):
    expected, log = undisturbed(), tmp_path / "log"
    sent, codes, studies = 0, set(), 0
    while sent < 12:
        studies += 1
        study = tmp_path / "runs" / f"cut{studies}"
        settings = [*tiny_overrides, *SWEEP, f"study={study.name}"]
        while True:
            with forked(lambda settings=settings: sweep(settings), log) as child:
                if carried_out := sent % 4 > 1:  # half of the moments are while a run is carried out
                    wait_for_a_run(child, study)
                time.sleep(moments.uniform(0.01, 0.3 if carried_out else 1.0))
                if done := os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                    assert ended(child) == 0, log.read_text()
                    break
                kind = signal.SIGKILL if sent % 2 else signal.SIGTERM
                os.kill(child, kind)
                codes.add(ended(child))
                sent += 1
            if sent >= 12:
                sweep(settings)
                break
        assert done or sent >= 12
        assert rows(study) == expected
    # 143: stopped by SIGTERM with a checkpoint; -15: between two runs; 0: while the last one was written
    assert codes <= {-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM, 0} and 143 in codes, log.read_text()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT"])
def test_asked_to_stop_a_run_keeps_the_step_it_made_and_leaves_no_record(tiny_overrides, tmp_path, carry_out, name):
    settings = ["train.max_steps=400", "machine.save_every=1000", "machine.log_every=1", "train.eval_every=100"]
    study, log = tmp_path / "runs" / "test", tmp_path / "log"
    with forked(lambda: sweep([*tiny_overrides, *settings, "seed=0,1"]), log) as child:
        wait_for(child, lambda: list(study.glob("*/metrics.jsonl")))
        os.kill(child, getattr(signal, name))
        assert ended(child) == 128 + getattr(signal, name), log.read_text()
    (kept,) = study.glob("*/checkpoints/step-*")
    assert not list(records.find(study)) and len(list(study.iterdir())) == 2, "the next run of the sweep did not start"
    last = (kept.parents[1] / "metrics.jsonl").read_text().splitlines()[-1]
    assert f'"step": {int(kept.name.partition("-")[2])},' in last


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["in an evaluation", "after the run was asked", "while a checkpoint is written"])
def test_a_signal_between_two_steps_costs_no_step(carry_out, kept_run, tmp_path, monkeypatch, moment, number):
    settings = ["train.max_steps=12", "machine.save_every=5", "train.eval_every=6"]
    straight, _ = kept_run(*settings)
    owner = {"in an evaluation": Loop, "after the run was asked": signals}.get(moment, Checkpoints)
    name = {"in an evaluation": "timed_evaluation", "after the run was asked": "asked"}.get(moment, "write")
    call, sent = getattr(owner, name), []

    def disturbed(*arguments):
        found = call(*arguments)
        if not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, disturbed)
        with pytest.raises(signals.Interrupted) as stop, signals.listening():
            carry_out(*settings)
    assert stop.value.exit_code == 128 + number
    (kept, *_) = sorted((tmp_path / "runs" / "test").glob("*/checkpoints/step-*"), reverse=True)
    made = {"in an evaluation": 6, "after the run was asked": 2, "while a checkpoint is written": 6}[moment]
    assert kept.name == f"step-{made:08d}", "every step that was made is kept"
    assert carry_out(*settings).metrics == straight.metrics


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_after_the_last_step_lets_the_run_end_and_nothing_else_begin(carry_out, tmp_path, monkeypatch, number):
    finish = Loop.finish
    monkeypatch.setattr(Loop, "finish", lambda self: (os.kill(os.getpid(), number), finish(self))[1])
    with pytest.raises(signals.Interrupted) as stop, signals.listening():
        carry_out("train.max_steps=2")
    assert stop.value.exit_code == 128 + number
    (folder,) = records.find(tmp_path / "runs")
    assert records.read(folder).status == "done"


@dataclass(kw_only=True)
class Deadly(LoRA):
    """LoRA whose process is killed at step 3: once for the seeds in ONCE, always for those in ALWAYS."""

    marks: str = ""

    def on_step_begin(self, step):
        mark = Path(self.marks)
        if step.index == 3 and mark.exists() and (os.getpid() != int(mark.read_text())):
            mark.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_takes_no_run_with_it(tiny_overrides, tmp_path, undisturbed, monkeypatch):
    mark = tmp_path / "mark"
    deadly = [f"variant._target_={__name__}.Deadly", f"+variant.marks={mark}"]
    expected = undisturbed(*deadly)
    mark.write_text(str(os.getpid()))  # the first worker that comes to step 3 dies
    parallel = ["hydra/launcher=cores", "hydra.launcher.n_jobs=2", "study=died"]
    monkeypatch.setattr(context, "_DEFAULT_START_METHOD", "fork")  # so that no worker has to import anything
    code, output = finished([*tiny_overrides, *SWEEP, *deadly, *parallel], tmp_path / "log")
    assert code == 0 and "a worker died (TerminatedWorkerError); its runs resume from their checkpoints" in output, (
        output
    )
    assert not mark.exists()
    assert rows(tmp_path / "runs" / "died") == expected


class Launcher:
    """A launcher whose process dies whenever it is given the run with the seed 1."""

    def __init__(self, launcher):
        self.launcher = launcher

    def launch(self, jobs, initial_job_idx):
        if any("seed=1" in job for job in jobs):
            raise TerminatedWorkerError("a worker was killed")
        return self.launcher.launch(jobs, initial_job_idx)


def test_a_run_whose_process_always_dies_is_found_and_recorded(tiny_overrides, tmp_path, monkeypatch):
    instantiate = Plugins.instantiate_launcher
    with monkeypatch.context() as patched:
        patched.setattr(Plugins, "instantiate_launcher", lambda *args, **named: Launcher(instantiate(*args, **named)))
        with pytest.raises(ConfigError, match="1 of 3 runs failed, the first: the process that carried out this run"):
            sweep([*tiny_overrides, *SWEEP, "hydra.sweeper.batch=3"])
    found = sorted((r.seed, r.status) for r in map(records.read, records.find(tmp_path / "runs")))
    assert found == [(0, "done"), (1, "failed"), (2, "done")]
    sweep([*tiny_overrides, *SWEEP])
    assert {r.status for r in map(records.read, records.find(tmp_path / "runs"))} == {"done"}


@pytest.mark.parametrize("kind", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_full_disk_costs_a_checkpoint_and_nothing_else(
    tiny_overrides, tmp_path, undisturbed, monkeypatch, caplog, kind
):
    expected, whole = undisturbed("seed=0"), state_files.save_file
    study = tmp_path / "runs" / "full"

    def half(tensors, path):
        whole(tensors, path)
        if ".writing" in str(path) and any(study.glob("*/checkpoints/step-00000003")):
            path.write_bytes(path.read_bytes()[:500])
            raise kind

    monkeypatch.setattr(state_files, "save_file", half)
    settings = [*tiny_overrides, *SWEEP, "seed=0", "study=full"]
    log = tmp_path / "log"
    with forked(lambda: sweep(settings, logging=[]), log) as child:
        wait_for(child, lambda: log.exists() and "no checkpoint of step 5: " in log.read_text())
        os.kill(child, signal.SIGKILL)
        ended(child)
    for run in study.glob("*/checkpoints"):
        assert sorted(path.name for path in run.glob("step-*")) == ["step-00000002", "step-00000003"]
    monkeypatch.setattr(state_files, "save_file", whole)
    sweep(settings)
    assert rows(study) == expected


def flip(path: Path) -> None:
    """One bit in the middle of the tensors, which every reader of the format takes."""
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a bit of state.safetensors": lambda folder: flip(folder / "state.safetensors"),
    "half of state.json": lambda folder: (folder / "state.json").write_text((folder / "state.json").read_text()[:99]),
    "no state.json": lambda folder: (folder / "state.json").unlink(),
    "an empty sha256.json": lambda folder: (folder / "sha256.json").write_text(""),
}


@pytest.fixture(scope="module")
def cut_at_five(tiny_model, tiny_task, tmp_path_factory) -> Path:
    """The folder `runs` with a run of the study `damaged` that ended with the checkpoint of step 5."""
    write = Checkpoints.write

    def write_and_die(self, step, state):
        write(self, step, state)
        if step == 5:
            raise KeyboardInterrupt

    folder = tmp_path_factory.mktemp("cut")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Checkpoints, "write", write_and_die)
        with pytest.raises(KeyboardInterrupt):
            sweep([*tiny_run(tiny_model, tiny_task, folder), *SWEEP, "seed=0", "study=damaged"])
    return folder / "runs"


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tiny_overrides, tmp_path, undisturbed, cut_at_five, caplog, damage
):
    expected, settings = undisturbed("seed=0"), [*tiny_overrides, *SWEEP, "seed=0", "study=damaged"]
    shutil.copytree(cut_at_five, tmp_path / "runs")
    (newest,) = (tmp_path / "runs" / "damaged").glob("*/checkpoints/step-00000005")
    damage(newest)
    sweep(settings)
    assert "step-00000005 can't be read and is ignored" in caplog.text and "step-00000004 can't" not in caplog.text
    assert rows(tmp_path / "runs" / "damaged") == expected


def test_a_clock_that_jumps_back_changes_no_duration(tiny_overrides, tmp_path, undisturbed, monkeypatch):
    expected, jumps = undisturbed(), iter(range(10**6))

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, zone=None):
            return datetime.datetime(2026, 1, 1, tzinfo=zone) - datetime.timedelta(hours=next(jumps))

    monkeypatch.setattr("trainer.runs.run.datetime.datetime", Jumping)
    monkeypatch.setattr(time, "time", lambda: 1e9 - 3600 * next(jumps))
    sweep([*tiny_overrides, *SWEEP, "study=jumped"])
    monkeypatch.undo()
    for record in map(records.read, records.find(tmp_path / "runs" / "jumped")):
        assert record.started <= record.finished
        assert 0 < record.time.train < 60 and 0 < record.time.eval < 60 and record.time.steps_per_second > 0
    assert rows(tmp_path / "runs" / "jumped") == expected


def test_a_hub_that_hangs_costs_seconds_and_is_one_line(tiny_overrides, tmp_path, monkeypatch, caplog):
    from huggingface_hub import constants

    from trainer.data.sources import hub

    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections, and says nothing
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "PATIENCE", 0.5)
        overrides = [text for text in tiny_overrides if not text.startswith("model")]
        begin = time.monotonic()
        with pytest.raises(ConfigError, match=r"3 of 3 runs can't be carried out, and none was started") as error:
            sweep([*overrides, *SWEEP, "model=hub", "model.id=someone/nothing"])
        assert time.monotonic() - begin < 20 and "\n" not in str(error.value)
        assert "can't be reached" in caplog.text
    assert not list(records.find(tmp_path / "runs")), "a run that can't be named has no folder"


@dataclass(kw_only=True)
class Hungry(LoRA):
    """LoRA that runs out of memory at step 3, each run in the way that is next."""

    ways: ClassVar[Iterator[Callable[[], object]] | None] = None

    def on_step_begin(self, step):
        if step.index == 3 and self.ways is not None:
            next(self.ways, lambda: None)()


def raising(error: Exception):
    def call():
        raise error

    return call


def test_out_of_memory_is_recorded_and_the_sweep_goes_on(tiny_overrides, tmp_path, undisturbed, caplog, monkeypatch):
    hungry = [f"variant._target_={__name__}.Hungry"]
    expected = undisturbed(*hungry)
    ways = [
        raising(MemoryError("no more")),
        raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
        lambda: torch.empty(1 << 60, dtype=torch.uint8),
    ]
    monkeypatch.setattr(Hungry, "ways", iter(ways))
    kinds = dict(enumerate(["MemoryError: no more", "OutOfMemoryError: CUDA out of memory", "RuntimeError: "]))
    settings = [*tiny_overrides, *SWEEP, *hungry, "study=hungry"]
    with pytest.raises(ConfigError, match="3 of 3 runs failed, the first: "):
        sweep(settings)
    for record in map(records.read, records.find(tmp_path / "runs" / "hungry")):
        assert record.status == "failed" and record.error.startswith(f"out of memory: {kinds[record.seed]}")
    sweep(settings)
    assert rows(tmp_path / "runs" / "hungry") == expected
