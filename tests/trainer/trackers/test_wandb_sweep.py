"""The sweep of docs/wandb_sweep.yaml: what W&B's agent would start trains, and is the run that the agent waits for."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from tests.conftest import ROOT
from tests.trainer.sweeping import finished
from tests.trainer.trackers.inspected import runs_in
from trainer import record as records

pytestmark = pytest.mark.slow

SWEEP = ROOT / "docs" / "wandb_sweep.yaml"
CHOSEN = {"variant.rank": 4, "optim.lr": 0.0012345678901234567}


def agents_command(sweep: dict, chosen: dict) -> list[str]:
    """The command line as `wandb agent` builds it in `_command_run`, for the values that the server chose."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    values = {"args": {name: {"value": value} for name, value in chosen.items()}}
    variables = utils.create_sweep_command_args(values) | {
        "interpreter": [sys.executable],
        "program": [sweep["program"]],
        "env": ["/usr/bin/env"],
    }
    found: list[str] = []
    for part in map(str, utils.create_sweep_command(sweep["command"])):
        found += variables[part[2:-1]] if part.startswith("${") and part.endswith("}") else [part]
    return found


@pytest.fixture
def sweep() -> dict:
    return yaml.safe_load(SWEEP.read_text())


@pytest.fixture
def agent(sweep, tiny_overrides, tmp_path, monkeypatch):
    """Carries out what the agent would start for the chosen values: the tiny model and task, all else as chosen.

    whole: in a process of its own, as the agent does, or else in a fork.
    """
    tiny = [o for o in tiny_overrides if not o.startswith(("optim.lr=", "study="))]

    def start(chosen: dict, whole: bool = True) -> tuple[int, str]:
        path = tmp_path / "config-abcd1234.yaml"
        path.write_text(yaml.safe_dump({"wandb_version": 1} | {n: {"value": v} for n, v in chosen.items()}))
        set_by_agent = {"WANDB_SWEEP_ID": "sweep123", "WANDB_RUN_ID": "abcd1234", "WANDB_SWEEP_PARAM_PATH": str(path)}
        for name, value in (set_by_agent | {"WANDB_MODE": "offline", "WANDB_PROJECT": "loratory"}).items():
            monkeypatch.setenv(name, value)
        command = [*agents_command(sweep, chosen), *tiny]
        if whole:
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
            return done.returncode, done.stderr
        return finished(command[command.index(sweep["program"]) + 1 :], tmp_path / "log", flags=())

    return start


def test_the_agents_command_line_trains_what_the_server_chose(sweep, agent, tmp_path):
    assert set(CHOSEN) == set(sweep["parameters"])
    code, output = agent(CHOSEN)
    assert code == 0, output
    (folder,) = (tmp_path / "runs" / "wandb_sweep").glob("[0-9a-f]*")
    record = records.read(folder)
    assert record is not None and record.status == "done"
    assert {f"config.{name}": value for name, value in CHOSEN.items()}.items() <= record.row().items()

    (logged,) = runs_in(folder)
    assert (logged.run["run_id"], logged.run["sweep_id"]) == ("abcd1234", "sweep123")
    evaluated = [row[sweep["metric"]["name"]] for row in logged.history if sweep["metric"]["name"] in row]
    assert evaluated and logged.summary[sweep["metric"]["name"]] == evaluated[-1]
    config = logged.run["config"]
    assert {name: config[name] for name in CHOSEN} == CHOSEN  # what W&B's search looks at
    assert (config["variant"]["name"], config["variant"]["rank"]) == ("lora", 4)  # what a workspace groups by
    assert logged.exit_code == 0 and "tracker wandb: offline" in output


def test_a_group_among_the_parameters_is_a_warning(agent):
    code, output = agent(CHOSEN | {"variant": "lora"}, whole=False)
    assert code == 0, output
    (warning,) = [line for line in output.splitlines() if "replaced all settings of variant in W&B's config" in line]
    assert "write variant=… in the sweep's command" in warning


def test_what_the_sweep_maximizes_is_measured_on_the_selection_split(sweep):
    assert sweep["metric"]["name"].startswith("eval/")
