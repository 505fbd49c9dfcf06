"""trackio's store and page show what the run's own files say; nothing leaves the machine."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.browser import watch
from tests.conftest import ROOT, folder_of
from tests.trainer.trackers.disturbed import warnings
from trainer.errors import ConfigError
from trainer.sweeps.plan import Planned
from trainer.trackers import guard
from trainer.trackers.tracker import RunInfo
from trainer.trackers.trackio import Trackio, accepted

pytestmark = pytest.mark.slow

TRACKIO = ["tracker=trackio", "machine.log_every=2"]
COMMAND = Path(sys.executable).with_name("trackio")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def stored(folder: Path, sql: str) -> list[dict]:
    """What trackio's own command finds in its store."""
    command = [str(COMMAND), "query", "project", "--project", "test", "--sql", sql, "--json"]
    environment = os.environ | {"TRACKIO_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=True)
    return json.loads(done.stdout)["rows"]


def test_a_run_is_read_back_as_its_own_files_say(carry_out, tmp_path, caplog):
    caplog.set_level("INFO", "trainer")
    record = carry_out("variant=adalora", *TRACKIO)
    folder = folder_of(record, tmp_path)
    found = stored(tmp_path / "runs" / ".trackio", "select run_name, step, metrics from metrics order by id")
    assert {row["run_name"] for row in found} == {f"adalora-tiny-0-{record.run_id}"}
    rows = [{"step": row["step"]} | json.loads(row["metrics"]) for row in found]
    assert [row for row in rows if "epoch" in row] == lines(folder / "metrics.jsonl")
    ranks = lines(folder / "ranks.jsonl")
    assert [row["ranks/max"] for row in rows if "ranks/max" in row] == [max(line["ranks"].values()) for line in ranks]
    last = rows[-1]
    assert last["params/effective"] == record.params.effective
    assert last["metric/value"] == record.metric.value
    assert last["ranks/layers"]["_value"][0].keys() == {"step", "layer", "rank"}
    assert len(last["ranks/layers"]["_value"]) == sum(len(line["ranks"]) for line in ranks)
    said = [message for message in caplog.messages if message.startswith("tracker")]
    assert said == [f"tracker trackio: logs to {tmp_path / 'runs' / '.trackio'}; `make dashboard` opens it"]
    assert json.loads((folder / "tracker.json").read_text())["name"] == "trackio"


@pytest.mark.usefixtures("forked_hosts")
def test_a_store_that_can_not_be_written_costs_one_warning(carry_out, tmp_path, caplog):
    record = carry_out("tracker=trackio", "tracker.dir=/proc/loratory")
    (warning,) = warnings(caplog)
    assert warning.startswith("tracker trackio: FileNotFoundError: ")
    assert record.status == "done"


@pytest.mark.usefixtures("forked_hosts")
def test_rows_that_trackio_loses_are_a_warning(carry_out, tmp_path, caplog):
    store = tmp_path / "runs" / ".trackio"
    (store / "test.db").mkdir(parents=True)  # where the file of the project would be
    record = carry_out(*TRACKIO)
    (warning,) = warnings(caplog)
    assert warning.startswith("tracker trackio: ")
    assert record.status == "done"


@pytest.mark.parametrize("study", ["x_system", "registry-x", "é" * 100])
def test_the_name_of_a_study_that_it_would_refuse_is_changed(tmp_path, study):
    tracker = Trackio(project=study, dir=str(tmp_path))
    run = RunInfo(tmp_path, "0123456789ab", study, "lora", "t" * 300, "m", 0, {"study": study}, os.getpid())
    started = tracker.start(run)
    tracker.log({"step": 1, "loss": 1.0})
    tracker.finish({"status": "done", "metric.value": 0.5}, [])
    assert started.project != study and len(started.run) == 128
    assert accepted("an-ordinary-name") == "an-ordinary-name"


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        Trackio(project="p", dir="d").check()
    assert str(error.value) == "tracker: 'trackio' is not installed: pip install 'loratory[trackio]'"


@pytest.fixture
def page_of(tmp_path):
    """The address of `make dashboard` over the store of this test's runs."""
    begun: list[subprocess.Popen[bytes]] = []

    def shown() -> str:
        command = re.search(r"^dashboard:.*\n\t(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert command
        text = command[1].replace("$(BIN)/", f"{COMMAND.parent}/").replace("$$", "$")
        environment = os.environ | {
            "TRACKIO_DIR": str(tmp_path / "runs" / ".trackio"),
            "HF_HUB_OFFLINE": "1",
            "BROWSER": "true",  # opens none
            "PYTHONUNBUFFERED": "1",
            "GRADIO_SERVER_PORT": str(free_port()),
        }
        process = subprocess.Popen(["sh", "-c", f"exec env {text}"], stdout=subprocess.PIPE, env=environment)
        begun.append(process)
        said, until = "", time.monotonic() + 60
        while time.monotonic() < until:
            if select.select([process.stdout], [], [], 0.2)[0]:
                said += os.read(process.stdout.fileno(), 1 << 16).decode()
            if address := re.search(r"http://127\.0\.0\.1:\d+/", said):
                return address[0]
            assert process.poll() is None, said
        raise AssertionError(said)

    yield shown
    for process in begun:
        process.kill()
        process.wait()
        process.stdout.close()


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.usefixtures("forked_hosts")
def test_the_page_shows_the_runs_and_asks_nobody_else(carry_out, page_of, chromium, tmp_path):
    records = [carry_out("variant=lora", *TRACKIO), carry_out("variant=head", *TRACKIO)]
    names = [f"{record.variant}-tiny-0-{record.run_id}" for record in records]
    address = page_of()
    page = chromium.new_page(viewport={"width": 1400, "height": 1200})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    trouble = watch(page)
    page.goto(address)
    for name in names:
        page.get_by_text(name).first.wait_for(timeout=30_000)
    for title in ("task_loss", "accuracy", "effective", "total_rank"):
        page.get_by_text(title, exact=True).first.wait_for(timeout=30_000)
    assert {url.split("/")[2] for url in asked if url.startswith(("http", "ws"))} == {address.split("/")[2]}
    assert not [each for each in trouble if not each.startswith("request")], trouble
    page.close()


@pytest.mark.usefixtures("forked_hosts")
def test_runs_that_go_on_at_once_share_one_store(tmp_path, caplog):
    runs = []
    for number in range(3):
        folder = tmp_path / f"{number:012d}"
        folder.mkdir()
        rows = [json.dumps({"step": step, "train/task_loss": number}) + "\n" for step in range(1, 51)]
        (folder / "metrics.jsonl").write_text("".join(rows))
        tracker = {
            "_target_": "trainer.trackers.trackio.Trackio",
            "project": "test",
            "dir": str(tmp_path / "store"),
            "timeout": 60,
        }
        names = {group: {"name": group} for group in ("variant", "task", "model")}
        config = OmegaConf.create({"study": "test", "seed": 0, "tracker": tracker} | names)
        runs.append(guard.begin(Planned(config, {}, folder.name, None, folder, None)))
    for run in runs:
        run.end()
    assert not warnings(caplog)
    found = stored(tmp_path / "store", "select run_name, count(*) as n, max(step) as last from metrics group by 1")
    assert [(row["n"], row["last"]) for row in found] == [(50, 50)] * 3
