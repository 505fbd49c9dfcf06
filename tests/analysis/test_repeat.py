"""The command that a report prints for a run repeats it, also where its method is none of the suite's."""

from __future__ import annotations

import shlex
import sys

import pytest

from analysis.report import repeat
from tests.trainer import sweeping
from trainer import record as records
from trainer.record import Record

METHOD = """
from dataclasses import dataclass, field
from collections.abc import Mapping
from variants.lora import LoRA

@dataclass(kw_only=True)
class Mine(LoRA):
    name: str = "mine"
    flavour: str = "plain"
    parts: Mapping[str, int] = field(default_factory=dict)
"""
YAML = """# @package _global_
variant:
  _target_: mymethod.Mine
  name: mine
  rank: 3
  flavour: "it's 10 %"
  rank_pattern: {query: 2, "layer.0.*": 4}
  exclude: [key]
  parts: {}
optim: {lr: 0.02, warmup: 0.1}
"""


@pytest.fixture
def outside(tmp_path):
    """A folder with a method and its YAML, which the suite knows nothing of."""
    folder = tmp_path / "theirs"
    (folder / "conf" / "variant").mkdir(parents=True)
    (folder / "mymethod.py").write_text(METHOD)
    (folder / "conf" / "variant" / "mine.yaml").write_text(YAML)
    return folder


def train(outside, *arguments: str) -> None:
    """Carries out a run in a fork that finds the method as with PYTHONPATH."""

    def call() -> None:
        sys.path.append(str(outside))
        sweeping.command(list(arguments), flags=())

    log = outside / "log"
    with sweeping.forked(call, log) as child:
        assert sweeping.ended(child) == 0, log.read_text()


@pytest.mark.slow
def test_the_command_of_a_method_from_outside_makes_the_same_run(outside, tiny_overrides, tmp_path):
    own = [text for text in tiny_overrides if not text.startswith("optim.lr")]
    train(outside, "--config-dir", str(outside / "conf"), "variant=mine", "train.max_steps=3", "seed=2", *own)
    (folder,) = (tmp_path / "runs" / "test").glob("[0-9a-f]*")
    made = records.read(folder)
    texts = repeat.overrides(made, folder)
    assert repeat.is_foreign(made) and not any(text.startswith("variant=") for text in texts)
    command = shlex.join(["python", "train.py", *texts])
    folder.rename(tmp_path / "first")
    train(outside, *shlex.split(command)[2:])
    (again,) = (tmp_path / "runs" / "test").glob("[0-9a-f]*")
    repeated = records.read(again)
    assert (repeated.run_id, repeated.config) == (made.run_id, made.config)
    assert repeated.metrics == made.metrics and repeated.files == made.files


def a_record(*overrides: str, **config: object) -> Record:
    return Record("0", "s", "v", "t", "m", 0, overrides=list(overrides), config=config)


@pytest.mark.parametrize("overrides", [["variant=lora"], ["variant=families/lora", "seed=1"], ["seed=2"], []], ids=str)
def test_what_was_typed_repeats_a_method_of_the_suite(overrides):
    found = a_record(*overrides, **{"variant._target_": "variants.lora.LoRA", "variant.rank": 8})
    assert repeat.overrides(found) is None and not repeat.is_foreign(found)
    assert repeat.overrides(a_record(*overrides)) is None  # of which no class is recorded


def test_a_file_that_is_not_there_is_written_out_for_a_class_of_the_suite_too():
    found = a_record("variant=gone", "seed=1", **{"variant._target_": "variants.lora.LoRA", "variant.rank": 8})
    assert repeat.overrides(found) == [
        "seed=1",
        "~variant",
        "++variant._target_=variants.lora.LoRA",
        "++variant.rank=8",
    ]
    assert not repeat.is_foreign(found)


def test_a_method_without_a_file_is_written_out():
    typed = ["variant=lora", "variant._target_=mine.Method", "+variant.x=1", "task=movie", "optim.lr=1e-2"]
    found = a_record(
        *typed, **{"variant._target_": "mine.Method", "variant.x": 1, "optim.lr": 0.01, "data.limit": None}
    )
    found.identity = {"variant.x": 1, "optim.lr": 0.01}
    wanted = ["task=movie", "~variant", "++variant._target_=mine.Method", "++variant.x=1", "++optim.lr=0.01"]
    assert repeat.overrides(found) == wanted


@pytest.mark.parametrize(
    "value", [None, True, "null", "True", "nan", "a b", "it's", "back\\", "\\'", "", "x,y", "1", "ü", [1, "a b"], 1e-5]
)
def test_every_value_is_read_as_it_was(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    found = a_record(**{"variant._target_": "mine.Method", "variant.x": value, "variant.y.a.b": value})
    texts = repeat.overrides(found)
    x, y = (OverridesParser.create().parse_override(text).value() for text in texts[2:])
    assert str(x) == str(value) and type(getattr(x, "text", x)) is type(value) and list(map(str, y)) == ["a.b"]
