"""Offline W&B runs are found below run folders and handed to W&B's own command."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from analysis.commands import cli, sync


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody answers there


@pytest.fixture
def study(tmp_path) -> Path:
    """Two runs, the second of which was interrupted once, and one that was logged online."""
    for run, name in (
        ("bbb", "offline-run-20260102_000000-bbb"),
        ("bbb", "offline-run-20260104_000000-bbb"),
        ("aaa", "offline-run-20260103_000000-aaa"),
        ("ccc", "run-20260101_000000-ccc"),
    ):
        folder = tmp_path / "study" / run / "wandb" / name
        folder.mkdir(parents=True)
        (folder / f"run-{run}.wandb").write_bytes(b":W&B")
    (tmp_path / "study" / "aaa" / "wandb" / "offline-run-20260105_000000-empty").mkdir()
    return tmp_path / "study"


def test_offline_runs_are_found_in_the_order_in_which_they_began(study):
    assert [path.name for path in sync.offline_folders([study, study / "aaa"])] == [
        "offline-run-20260102_000000-bbb",
        "offline-run-20260103_000000-aaa",
        "offline-run-20260104_000000-bbb",
    ]


def test_online_runs_are_found_where_asked_for(study):
    first, *rest = sync.offline_folders([study], online=True)
    assert first.name == "run-20260101_000000-ccc" and rest == sync.offline_folders([study])


def test_dry_run_lists_them_without_a_key(study, capfd):
    assert cli.main(["sync", str(study), "--dry-run"]) == 0
    said = capfd.readouterr()
    assert "Would sync 3 run(s)" in said.out + said.err


def test_without_a_key_it_says_in_one_line_what_to_set(study, capsys):
    assert cli.main(["sync", str(study)]) == 2
    assert "set WANDB_API_KEY or run `wandb login`" in capsys.readouterr().err.splitlines()[-1]


def test_with_a_key_all_of_them_go_to_one_call(study, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a1b2c3d4e5" * 4)
    called = []

    def call(command: list[str]) -> subprocess.CompletedProcess[str]:
        called.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(sync.subprocess, "run", call)
    assert cli.main(["sync", str(study), "--project", "p", "--entity", "e"]) == 3
    ((_, *arguments),) = called
    assert arguments[:7] == ["-m", "wandb", "beta", "sync", "--yes", "--project=p", "--entity=e"]
    assert len(arguments) == 7 + 3
    assert not [word for word in arguments if "a1b2c3d4e5" in word]


@pytest.mark.parametrize("name, says", [("nowhere", "nowhere: no such folder"), (".", "no offline W&B run in ")])
def test_nothing_to_upload_is_said(name, says, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert cli.main(["sync", str(tmp_path / "empty" / name)]) == 2
    assert says in capsys.readouterr().err
