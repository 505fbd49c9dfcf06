"""Values that people have and Hydra's grammar refuses."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.conftest import ROOT
from trainer.errors import ConfigError
from trainer.overrides import overrides_first, quoted, readable

NAMES = [
    *("train (1).csv", "données.csv", "数据.csv", "epoch=3.csv", "a,b.csv", "[x].csv", "{x}.csv", "#1 @home.csv"),
    *("it's.csv", '"q".csv', "a;b&c!.csv", "back\\slash.csv", "end\\", "\\'.csv", "1e3", "2024", "glob(x)", " a.csv"),
]


def read(argument: str) -> object:
    (text,) = readable([argument])
    override = OverridesParser.create().parse_override(text)
    return list(override.sweep_string_iterator()) if override.is_sweep_override() else override.value()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("field", ["task.source.train_path", "model.path", "runs_dir", "hydra.run.dir"])
def test_a_path_that_is_there_is_that_path(tmp_path, monkeypatch, name, field):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch()
    assert read(f"{field}={name}") == name
    assert read(f"{field}={tmp_path / name}") == str(tmp_path / name)
    assert readable([f"{field}={quoted(name)}"]) == [f"{field}={quoted(name)}"]


def test_home_is_put_in_for_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read("runs_dir=~/runs") == f"{tmp_path}/runs"
    assert read("glue.path=~") == str(tmp_path)
    assert read("task.source.train_path=~/a.csv,~/b.csv") == [f"{tmp_path}/a.csv", f"{tmp_path}/b.csv"]
    assert read("task.source.text=~x") == "~x"


def test_a_path_that_is_not_there_is_read_so_that_the_error_names_it():
    assert read("model.path=/nowhere/é (1)") == "/nowhere/é (1)"


def test_texts_of_letters_that_the_grammar_lacks():
    assert read("task.source.text=Überschrift") == "Überschrift"
    assert read("study=résumé #3") == "résumé #3"


@pytest.mark.parametrize("value", ["a (b)", "[a,b", "é,(b", "it's"])
def test_what_may_mean_several_things_is_refused_and_the_line_says_how_to_quote(value):
    with pytest.raises(ConfigError, match=r"^task.source.text: .* can't be parsed; allowed: text in quotes") as error:
        readable([f"task.source.text={value}"])
    (told,) = [word for word in shlex.split(str(error.value).split("the shell's, ")[1]) if word.startswith("task.")]
    assert read(told.rstrip(",")) == value


@pytest.mark.parametrize(
    "argument",
    [
        *("variant=lora,head", "-m", "--cfg", "job", "seed=range(0,3)", "task.metrics=[f1,accuracy]", "~task.positive"),
        *("variant.layers=[0,1]", "+x={a:1}", "glue.path=null", "study='a b'", "foo", "optim.lr=interval(1e-4,1e-3)"),
    ],
)
def test_what_the_grammar_reads_stays_as_it_is(argument):
    assert readable([argument]) == [argument]


def test_a_run_on_such_paths(tmp_path: Path):
    """By the command line itself: up to the model, which isn't there."""
    (tmp_path / "train (1).csv").write_text("text,label\n")
    done = subprocess.run(
        [
            *(sys.executable, "train.py", "task=file", "task.source.train_path=~/train (1).csv"),
            *("model=folder", "model.path=~/modèle", "runs_dir=~/läufe"),
        ],
        cwd=ROOT,
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr.strip() == f"error: model.path: '{tmp_path}/modèle' is not a folder"
    assert not (ROOT / "~").exists()


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        (["a=1", "-m", "b=2", "a=3"], ["-m"]),
        (["-m", "a=1", "b=2", "a=3"], ["-m"]),
        (["a=1", "--config-dir", "my/conf", "b=2", "-m", "a=3"], ["--config-dir", "my/conf", "-m"]),
        (["a=1", "b=2", "a=3", "--info"], ["--info"]),  # its value is optional, and no override is one
        (["a=1", "b=2", "a=3", "--nonsense"], ["--nonsense"]),
        (["a=1", "b=2", "a=3"], []),
    ],
)
def test_flags_may_stand_anywhere(arguments, flags):
    assert overrides_first(arguments) == ["a=1", "b=2", "a=3", *flags]
