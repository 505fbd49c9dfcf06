"""The user's folder of configs beside the suite's."""

from __future__ import annotations

import pytest

from trainer import config_files
from trainer.errors import ConfigError


@pytest.fixture(autouse=True)
def no_folder(monkeypatch):
    monkeypatch.setenv(config_files.VARIABLE, "set, so that it is as it was afterwards")


def test_files_of_the_folder_on_the_command_line_are_found_after_the_suites(tmp_path):
    own = tmp_path / "task" / "mine.yaml"
    own.parent.mkdir()
    own.write_text("name: mine\n")
    config_files.take(["variant=lora", "--config-dir", str(tmp_path), "task=mine"])
    assert config_files.find("task", "mine") == own
    assert {"mine", "movie"} <= set(config_files.names("task"))
    config_files.take(["variant=lora"])
    assert config_files.find("task", "mine") is None and config_files.own() is None


@pytest.mark.parametrize("name", ["config.yaml", "variant/lora.yaml"])
def test_a_file_that_the_suites_would_hide_is_refused(tmp_path, name):
    own = tmp_path / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("name: mine\n")
    with pytest.raises(ConfigError) as refused:
        config_files.take(["--config-dir", str(tmp_path)])
    allowed = "another name, or --config-dir FOLDER with a folder for configs of python train.py alone"
    assert str(refused.value) == f"{own}: the suite has a config of this name; allowed: {allowed}"


def test_no_template_is_a_name():
    assert not [name for name in config_files.names("variant") if name.startswith("_")]
