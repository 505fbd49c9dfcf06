"""`sync --to`: what a run that has ended gets to a dashboard is what a live one would have, once."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from analysis.commands import cli
from tests.conftest import DIVERGING, folder_of
from tests.trainer.sweeping import ended, forked
from tests.trainer.trackers.inspected import runs_in
from trainer.errors import RunFailed
from trainer.record import flatten, read
from trainer.trackers import wandb as trackers_wandb
from trainer.trackers.tracker import RunInfo
from trainer.trackers.upload import rows
from trainer.trackers.wandb import Wandb

pytestmark = pytest.mark.slow

ADALORA = ["variant=adalora", "machine.log_every=2"]


@dataclass
class Done:
    """What a command left: its exit code and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def sync(tmp_path, forked_hosts) -> Callable[..., Done]:
    """The command in a fork, which imports trackio anew: its store is chosen when it is imported. So do live runs."""

    def command(*arguments: object, **environment: str) -> Done:
        outputs = [tmp_path / "stdout", tmp_path / "stderr"]

        def call() -> None:
            atexit._clear()
            os.environ.update(environment)
            for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
                del sys.modules[name]
            out, err = (path.open("w", buffering=1) for path in outputs)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = cli.main(["sync", *map(str, arguments)])
            atexit._run_exitfuncs()  # W&B's, as when an interpreter ends
            sys.exit(code)

        with forked(call, tmp_path / "log") as child:
            return Done(ended(child), *(path.read_text() for path in outputs))

    return command


def stored(store: Path, project: str = "test") -> list[tuple[str, int, dict]]:
    """Run, step and numbers of every row in trackio's store, in their order."""
    with contextlib.closing(sqlite3.connect(store / f"{project}.db")) as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    found = [(name, step, json.loads(metrics)) for name, step, metrics in rows]
    for _, _, numbers in found:
        numbers.pop("ranks/map", None)  # a file of the store
        if "ranks/layers" in numbers:
            numbers["ranks/layers"] = numbers["ranks/layers"]["_value"]
    return found


def test_an_uploaded_run_is_in_trackio_what_a_live_one_is_and_is_uploaded_once(carry_out, finished_run, sync, tmp_path):
    folder = finished_run(*ADALORA)
    record = read(folder)
    live = carry_out(*ADALORA, "tracker=trackio", "study=live", f"tracker.dir={tmp_path / 'live'}")
    assert live.run_id == record.run_id
    done = sync(folder.parent, "--to", "trackio")
    store = tmp_path / "runs" / ".trackio"
    assert (done.returncode, done.stdout) == (0, f"{folder}: uploaded, logs to {store}; `make dashboard` opens it\n")

    def without_costs(found):
        return [
            (run, step, {n: v for n, v in row.items() if not n.startswith(("time/", "memory/"))})
            for run, step, row in found
        ]

    once = stored(store)
    assert without_costs(once) == without_costs(stored(tmp_path / "live", "live"))
    assert len(once) == rows(folder) and once[-1][2]["metric/value"] == record.metric.value
    assert json.loads((folder / "tracker.json").read_text())["name"] == "trackio"

    again = sync(folder.parent, "--to", "trackio")
    assert (again.returncode, again.stdout) == (0, f"{folder}: is in {store} already\n")
    assert stored(store) == once


def test_a_run_that_was_logged_live_is_not_doubled(carry_out, sync, tmp_path):
    fast = "train.max_steps=2"
    record, *others = carry_out(fast, *ADALORA, "tracker=trackio"), carry_out(fast, "seed=1"), carry_out(fast, "seed=2")
    store, folder = tmp_path / "runs" / ".trackio", folder_of(record, tmp_path)
    once = stored(store)
    # By the second in which they ended, which may be the same.
    said = dict(line.split(": ", 1) for line in sync(folder.parent, "--to", "trackio").stdout.splitlines())
    assert said.pop(str(folder)) == f"is in {store} already"
    assert said.keys() == {str(folder_of(other, tmp_path)) for other in others}
    everything = stored(store)
    assert everything[: len(once)] == once
    counts = {other.run_id: rows(folder_of(other, tmp_path)) for other in others}
    assert {run[-12:]: [name for name, *_ in everything].count(run) for run, *_ in everything[len(once) :]} == counts


def test_a_run_that_is_there_in_part_is_named_and_left_alone(finished_run, sync, tmp_path):
    folder, store = finished_run(*ADALORA), tmp_path / "runs" / ".trackio"
    whole = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text("".join(whole.splitlines(keepends=True)[:2]))
    assert sync(folder, "--to", "trackio").returncode == 0
    there = rows(folder)
    (folder / "metrics.jsonl").write_text(whole)
    said = f"is in {store} with {there} of {rows(folder)} rows; delete it there to upload all of it"
    assert sync(folder, "--to", "trackio").stdout == f"{folder}: {said}\n"


def test_an_uploaded_run_is_in_wandb_what_a_live_one_is_and_is_uploaded_once(carry_out, sync, tmp_path):
    record = carry_out(*ADALORA)
    folder = folder_of(record, tmp_path)
    live = carry_out(*ADALORA, "tracker=wandb", "study=live")
    done = sync(folder, "--to", "wandb", "--project", "p", WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{folder}: uploaded, offline as set by W&B's own settings or WANDB_MODE, logs to ")
    (uploaded,), (watched,) = runs_in(folder), runs_in(folder_of(live, tmp_path))
    assert uploaded.history[:-1] == watched.history[:-1]
    assert uploaded.history[-1].keys() == watched.history[-1].keys()
    assert (uploaded.run["display_name"], uploaded.run["tags"]) == (watched.run["display_name"], watched.run["tags"])
    assert (uploaded.run["project"], uploaded.run["run_group"], uploaded.exit_code) == ("p", "test", 0)
    shown = dict(flatten(uploaded.summary))
    assert {name: value for name, value in shown.items() if name in record.row()} == record.row()
    settings, others = (dict(flatten(logged.run["config"])) for logged in (uploaded, watched))
    assert {n for n in others if settings.get(n) != others[n]} <= {n for n in others if n.startswith("tracker")} | {
        "study"
    }

    again = sync(folder, "--to", "wandb", "--project", "p", WANDB_MODE="offline")
    assert "was logged offline to" in again.stdout and "`python -m analysis sync` uploads it" in again.stdout
    assert len(runs_in(folder)) == 1


def test_without_a_key_nothing_is_uploaded(finished_run, sync):
    folder = finished_run()
    done = sync(folder, "--to", "wandb")
    assert done.returncode == 2 and "set WANDB_API_KEY or run `wandb login`" in done.stderr.splitlines()[-1]
    assert not (folder / "wandb").exists()


@pytest.mark.parametrize("kept, says", [(7, "already"), (3, "with 3 of 7 rows; delete it there to upload all of it")])
@pytest.mark.parametrize("key", ["0123456789ab-043a7187", "abcd1234"], ids=["by itself", "in a W&B sweep"])
def test_a_run_that_is_at_wandb_is_left_alone(monkeypatch, tmp_path, kept, says, key):
    wandb = pytest.importorskip("wandb")
    from wandb.apis.public.runs import RunNotFoundError

    class Api:
        default_entity = "me"

        def run(self, path):
            if path != f"me/p/{key}":
                raise RunNotFoundError(path)
            return type("Shown", (), {"historyLineCount": kept, "url": f"https://w/me/p/runs/{key}"})

    monkeypatch.setattr(wandb, "Api", Api)
    run = RunInfo(tmp_path, "0123456789ab", "s", "lora", "t", "m", 0, {}, 1)
    url = f"https://w/me/p/runs/{key}"
    assert Wandb(project="p", mode="online").already(run, 7, url) == f"is at {url} {says}"
    assert Wandb(project="other", mode="online").already(run, 7, url) is None


def test_every_status_of_a_record_has_an_exit_code_at_wandb():
    from trainer.record import STATUSES

    assert set(STATUSES) == set(trackers_wandb.EXIT)


def test_a_failed_run_is_uploaded_as_one_and_what_lacks_its_files_is_named(carry_out, finished_run, sync, tmp_path):
    with pytest.raises(RunFailed):
        carry_out(*DIVERGING, "optim.lr=1e30", "machine.log_every=1")
    bare = finished_run()
    (bare / "config.yaml").unlink()
    done = sync(tmp_path / "runs", "--to", "wandb", WANDB_MODE="offline")
    assert (done.returncode, done.stderr) == (1, f"{bare}: not uploaded: no config.yaml\n")
    (failed,) = runs_in(tmp_path / "runs" / "test")
    assert failed.exit_code == 1


@pytest.mark.parametrize(
    "options, says",
    [
        (["--to", "trackio", "--entity", "e"], "--entity: with --to trackio, allowed: without it"),
        (["--to", "wandb", "--online"], "--online: with --to wandb, allowed: without it"),
        (["--to", "wandb", "--project", "a/b"], "sync: tracker.project: 'a/b', allowed: up to 128 characters without"),
    ],
)
def test_options_that_have_no_meaning_there_are_refused(options, says, finished_run, capsys):
    assert cli.main(["sync", str(finished_run()), *options]) == 2
    assert says in capsys.readouterr().err


def test_a_dry_run_lists_and_sends_nothing(finished_run, sync, tmp_path):
    folder = finished_run()
    done = sync(folder, "--to", "trackio", "--dry-run")
    assert (done.returncode, done.stdout) == (0, f"{folder}: would be uploaded, unless it is there already\n")
    assert not (tmp_path / "runs" / ".trackio").exists()
