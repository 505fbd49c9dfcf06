"""What a launcher's environment means, and what is refused before torch is there."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from trainer.errors import ConfigError
from trainer.machine import launch
from trainer.machine.launch import Launch
from trainer.sweeps.plan import plan

pytestmark = pytest.mark.slow

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node-0",
    "MASTER_PORT": "1234",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Every test begins and ends as a process that was started alone."""
    monkeypatch.setattr(launch, "_this", Launch())
    for name in [*TORCHRUN, "CUDA_VISIBLE_DEVICES", *(name for name in os.environ if name.startswith("ACCELERATE_"))]:
        monkeypatch.setenv(name, "")  # so that whatever the test does to it is undone
        monkeypatch.delenv(name)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def environment(monkeypatch):
    def told(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        launch.take()

    return told


def test_without_a_launcher_a_process_is_alone(environment):
    environment()
    assert launch.this() == Launch(rank=0, count=1)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_what_torchrun_says_is_read_and_hidden_from_other_libraries(environment):
    environment(**TORCHRUN)
    assert launch.this() == Launch(3, 4, "node-0", 1234, agent=True)
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} & set(os.environ)


def test_one_process_of_torchrun_is_alone(environment):
    environment(**TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"})
    assert launch.this() == Launch()
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & set(os.environ)


def test_only_the_first_process_speaks(environment, caplog):
    environment(**TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0"}, CUDA_VISIBLE_DEVICES="")
    assert logging.getLogger("trainer").isEnabledFor(logging.ERROR)
    environment(**TORCHRUN)
    assert not logging.getLogger("trainer").isEnabledFor(logging.CRITICAL)


@pytest.mark.parametrize(("given", "own"), [(None, "1"), ("4,7,9", "7"), ("", "")])
def test_a_process_sees_its_own_device_alone(environment, given, own):
    environment(**TORCHRUN, **({} if given is None else {"CUDA_VISIBLE_DEVICES": given}))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"CUDA_VISIBLE_DEVICES": "4"}, "CUDA_VISIBLE_DEVICES: '4', allowed: 2 devices, one for each process, or ''"),
        ({"ACCELERATE_USE_FSDP": "true"}, "ACCELERATE_USE_FSDP: 'true', allowed: false; machine.fsdp=true"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "ACCELERATE_USE_DEEPSPEED: 'true', allowed: false"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "ACCELERATE_MIXED_PRECISION: 'bf16', allowed: 'no'; train.autocast"),
    ],
)
def test_what_would_change_numbers_unseen_is_refused_in_one_line(environment, values, line):
    with pytest.raises(ConfigError) as error:
        environment(**TORCHRUN, **values)
    assert str(error.value).startswith(line)


def test_the_number_of_processes_belongs_to_the_run(configured, tiny_overrides, monkeypatch):
    one = plan(configured(tiny_overrides))
    monkeypatch.setattr(launch, "_this", Launch(0, 2))
    two = plan(configured(tiny_overrides))
    assert one.run_id != two.run_id
    assert "train.processes" not in one.identity.leaves and two.identity.leaves["train.processes"] == 2
    assert two.config.train.processes == 2, "and stands in its config.yaml"
    assert plan(configured([*tiny_overrides, "train.processes=2"])).run_id == two.run_id


def test_one_process_is_the_same_run_whether_it_is_said_or_not(configured, tiny_overrides):
    said = plan(configured([*tiny_overrides, "train.processes=1"]))
    assert said.run_id == plan(configured(tiny_overrides)).run_id


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "train.processes=2",
            "train.processes: 2, allowed: 1 (the number started) or null; torchrun --nproc-per-node 2",
        ),
        ("train.processes=0", "train.processes: 0, allowed: 1 (the number started) or null"),
        ("machine.fsdp=true", "machine.fsdp: true with one process, allowed: false; sharding needs several"),
    ],
)
def test_what_needs_more_processes_is_refused_where_there_is_one(configured, tiny_overrides, override, line):
    with pytest.raises(ConfigError) as error:
        plan(configured([*tiny_overrides, override]))
    assert str(error.value).startswith(line)


def test_the_module_imports_no_torch():
    code = "import sys, trainer.machine.launch; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
