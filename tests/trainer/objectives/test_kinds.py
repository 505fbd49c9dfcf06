"""Nothing but the files of `trainer/objectives` knows a kind of task, and one of the user's own is a file anywhere."""

from __future__ import annotations

import ast
import functools
import re
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import ROOT, folder_of
from trainer import class_source, code_hash
from trainer.data.sources.columns import COLUMNS
from trainer.errors import ConfigError
from trainer.objectives import kinds
from trainer.sweeps.plan import plan

OF_ONE_FORMAT = {"gguf.py"}  # unpacks files that hold language models and nothing else
FILES = [
    path
    for room in ("trainer", "weights", "analysis")
    for path in sorted((ROOT / room).rglob("*.py"))
    if ROOT / "trainer" / "objectives" not in path.parents and path.name not in OF_ONE_FORMAT
]


@functools.cache
def names() -> frozenset[str]:
    """What kinds are called: in configs, as classes, and by transformers and PEFT."""
    found = set()
    for name, target in kinds.KINDS.items():
        source = (ROOT / Path(*target.split(".")[:-1])).with_suffix(".py").read_text()
        found |= {name, target.rpartition(".")[2]}
        found |= set(re.findall(r'(?:auto_class|peft_task): ClassVar\[str(?: \| None)?\] = "(\w+)"', source))
    return frozenset(found - set(COLUMNS))  # a column may be called as its kind


def known(source: str) -> list[str]:
    """The names of kinds in `source`, docstrings and comments left out."""
    text = ast.unparse(ast.parse(source))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = text.replace(ast.get_docstring(node, clean=False) or "\0", "")
    return [name for name in sorted(names()) if re.search(rf"(?<!\w){name}(?!\w)", text)]


def test_no_file_knows_a_kind_of_task():
    found = {str(path.relative_to(ROOT)): known(path.read_text()) for path in FILES}
    assert {path: names for path, names in found.items() if names} == {} != found


def test_what_would_be_noticed():
    assert {"sequence_classification", "SequenceClassification", "SEQ_CLS"} <= names()
    assert known('if task.kind == "sequence_classification": pass') == ["sequence_classification"]
    assert known('"""Of a sequence_classification."""') == []


MINE = '''
"""Texts and their classes, where only how far the right class leads counts."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from trainer.objectives.metrics import Metric
from trainer.objectives.objective import Predictions
from trainer.objectives.sequence_classification import SequenceClassification


@dataclass(eq=False)
class Margins(SequenceClassification):
    scale: float = 1.0

    kind: ClassVar[str] = "margins"
    metrics: ClassVar = {"margin": Metric("scale * margin / examples", percent=False)}

    def check(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"scale: {self.scale}, allowed: above 0")

    def evaluated(self, rows, found):
        predictions, loss = super().evaluated(rows, found)
        outputs = predictions.outputs
        places = np.arange(len(outputs))
        right = outputs[places, predictions.reference]
        rest = outputs[places, 1 - predictions.reference]
        stats = {"margin": right - rest, "scale": np.full(len(outputs), self.scale / len(outputs))}
        return dataclasses.replace(predictions, stats=stats), loss

    def score(self, predictions: Predictions) -> dict[str, float]:
        return super(SequenceClassification, self).score(predictions)
'''


CLASSES = {"variant": "variants.lora.LoRA", "task.kind": "my_kinds.Margins"}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's own on the path, and the overrides that name its kind."""
    (tmp_path / "my_kinds.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_kinds", raising=False)
    return ["task.kind=my_kinds.Margins", "task.metrics=[margin]"]


def test_a_kind_of_ones_own_is_a_file_outside(mine, carry_out, tmp_path):
    """It trains, has its own metric in the record, and `analysis` computes it again from sums without its code."""
    from analysis.comparison import predictions
    from analysis.records.runs import Run

    record = carry_out(*mine, "+task.scale=2.0", "train.max_steps=3")
    assert record.metric.name == "margin" and record.metric.percent is False and record.config["task.scale"] == 2
    found = pd.read_parquet(folder_of(record, tmp_path) / "predictions.parquet")
    assert record.metric.value == pytest.approx(2 * found["stats.margin"].mean())
    sys.modules.pop("my_kinds")
    again = predictions.read(Run(str(folder_of(record, tmp_path)), record))
    assert again.score("margin") == pytest.approx(record.metric.value)


def test_the_code_of_ones_own_kind_is_recorded_and_a_change_of_it_is_said(
    mine, carry_out, configured, tiny_overrides, tmp_path
):
    record = carry_out(*mine, "train.max_steps=1")
    assert set(record.code) == {"variant", "task.kind"}
    done = plan(configured([*tiny_overrides, *mine, "train.max_steps=1"]))
    assert done.done and done.other_code == []
    earlier = {name: code_hash._of_version_1(class_source.find(cls).module) for name, cls in CLASSES.items()}
    assert earlier != record.code
    assert replace(done, record=replace(done.record, code=earlier)).other_code == []
    (tmp_path / "my_kinds.py").write_text(MINE.replace("right - rest", "rest - right"))
    class_source.read_module.cache_clear()
    changed = plan(configured([*tiny_overrides, *mine, "train.max_steps=1"]))
    assert changed.run_id == record.run_id and changed.other_code == ["task.kind"]
    assert "(the code of its task.kind has changed since; redo=true repeats it)" in changed.summary


def test_a_setting_at_its_default_does_not_rename_a_run(mine, configured, tiny_overrides):
    ids = [
        plan(configured([*tiny_overrides, *mine, *more])).run_id
        for more in ([], ["+task.scale=1.0"], ["+task.scale=2.0"])
    ]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["task.kind=poetry"], "task.kind: 'poetry', allowed: sequence_classification, "),
        (["task.kind=pathlib.Path"], "task.kind: 'pathlib.Path', allowed: a subclass of "),
        (
            ["task.source.label=null"],
            "task: columns text, allowed for a class or a number of each text: text, label; or another task.kind",
        ),
        (["+task.scale=2"], "task.scale: no such field, allowed: name, metrics, kind, source, positive"),
    ],
)
def test_what_is_no_kind_is_one_line(overrides, line, carry_out):
    with pytest.raises(ConfigError) as caught:
        carry_out(*overrides)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["+task.scale=-1.0"], "task.scale: -1.0, allowed: above 0"),
        (["+task.scale=wide"], "task.scale: 'wide', allowed: a number"),
        (["task.metrics=[accuracy]"], "task.metrics: 'accuracy' in a classification; allowed: margin"),
    ],
)
def test_a_wrong_setting_of_it_is_one_line(overrides, line, mine, carry_out):
    with pytest.raises(ConfigError) as caught:
        carry_out(*mine, *overrides)
    assert str(caught.value).startswith(line)
