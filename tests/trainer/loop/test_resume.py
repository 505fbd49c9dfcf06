"""A run that is cut off and started again ends with the bits of the run that was not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from tests.conftest import folder_of
from tests.trainer.left_behind import outcome
from trainer.loop import checkpoints
from trainer.loop.checkpoints import Checkpoints
from trainer.record import Record
from variants.lora import LoRA

pytestmark = pytest.mark.slow


@dataclass(kw_only=True)
class Mortal(LoRA):
    """LoRA whose process dies at the start of a step."""

    dies_at: ClassVar[int | None] = None

    def on_step_begin(self, step):
        if step.index == self.dies_at:
            raise KeyboardInterrupt


MORTAL = f"variant._target_={__name__}.Mortal"


@pytest.fixture
def interrupted(carry_out, monkeypatch):
    """Carries out a run that dies at each of `stops` in turn, then goes on to its end."""

    def carried_out(stops: list[int], *overrides: str) -> Record:
        for stop in stops:
            monkeypatch.setattr(Mortal, "dies_at", stop)
            with pytest.raises(KeyboardInterrupt):
                carry_out(*overrides)
        monkeypatch.setattr(Mortal, "dies_at", None)
        return carry_out(*overrides)

    return carried_out


SETTINGS = [
    ["variant.dropout=0.2", "machine.save_every=1"],
    ["variant.dropout=0.2", "machine.save_every=3", "machine.log_every=5"],
    ["train.accumulate=2", "machine.save_every=2", "train.eval_every=2"],
    ["train.group_by_length=false", "train.gradient_checkpointing=true", "machine.save_every=2"],
    ["model.dtype=bfloat16", "machine.save_every=2", "data.protocol=split", "data.select_share=0.25"],
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: " ".join(settings))
def test_interrupted_at_several_steps_it_ends_the_same(carry_out, interrupted, settings, tmp_path):
    settings = [MORTAL, "train.epochs=2", *settings]
    straight = outcome(carry_out(*settings, "study=straight"), tmp_path)
    total = straight["row"]["steps.total"]
    stops = [2, total // 2 + 1, total]  # before the first checkpoint, in the second epoch, at the last step
    cut_off = outcome(interrupted(stops, *settings, "study=cut"), tmp_path)
    assert cut_off == straight


def test_interrupted_at_every_step_it_ends_the_same(carry_out, interrupted, tmp_path):
    settings = [MORTAL, "variant.dropout=0.2", "machine.save_every=1", "train.max_steps=8"]
    straight = outcome(carry_out(*settings, "study=straight"), tmp_path)
    cut_off = outcome(interrupted(list(range(1, 9)), *settings, "study=cut"), tmp_path)
    assert cut_off == straight


@pytest.mark.parametrize(
    "settings",
    [
        ["variant=elalora", "variant.rank=4", "variant.interval=3", "variant.profile=released"],
        ["variant=dora", "variant.rank=4", "variant.magnitude_decay=0.01"],
        ["variant=rosa", "variant.warmup_steps=2", "variant.collect_steps=4", "variant.restart=true"],
        ["variant=peft", "variant.method=adamss", "variant.targets=[query]", "+variant.options.r=4"],
    ],
    ids=lambda settings: " ".join(settings[:2]),
)
def test_what_the_settings_of_test_every_method_leave_out_resumes_too(carry_out, monkeypatch, settings, tmp_path):
    settings = [*settings, "machine.save_every=2", "train.max_steps=9"]
    straight = outcome(carry_out(*settings, "study=straight"), tmp_path)
    write = Checkpoints.write

    def write_and_die(self, step, state):
        write(self, step, state)
        if step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "write", write_and_die)
    with pytest.raises(KeyboardInterrupt):
        carry_out(*settings, "study=cut")
    monkeypatch.setattr(Checkpoints, "write", write)
    cut_off = outcome(carry_out(*settings, "study=cut"), tmp_path)
    assert cut_off == straight


def test_a_truncated_checkpoint_falls_back_to_the_one_before(carry_out, monkeypatch, tmp_path, caplog):
    settings = [MORTAL, "machine.save_every=2", "train.max_steps=9"]
    straight = outcome(carry_out(*settings, "study=straight"), tmp_path)
    monkeypatch.setattr(Mortal, "dies_at", 8)
    with pytest.raises(KeyboardInterrupt):
        carry_out(*settings, "study=cut")
    (newest,) = (tmp_path / "runs" / "cut").glob("*/checkpoints/step-00000006/state.safetensors")
    newest.write_bytes(newest.read_bytes()[:1000])
    monkeypatch.setattr(Mortal, "dies_at", None)
    cut_off = outcome(carry_out(*settings, "study=cut"), tmp_path)
    assert "step-00000006 can't be read and is ignored" in caplog.text
    assert cut_off == straight


def test_a_checkpoint_of_another_version_is_left_out_with_a_line(carry_out, tmp_path, monkeypatch, caplog):
    settings = [MORTAL, "machine.save_every=2", "train.max_steps=6"]
    straight = outcome(carry_out(*settings, "study=straight"), tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "FORMAT", 1)
        patched.setattr(Mortal, "dies_at", 5)
        with pytest.raises(KeyboardInterrupt):
            carry_out(*settings, "study=cut")
    assert outcome(carry_out(*settings, "study=cut"), tmp_path) == straight
    line = "step-00000004 can't be read and is ignored: it was written by another version of this code"
    assert line in caplog.text


def test_cut_off_after_early_stopping_it_makes_no_further_step(carry_out, tmp_path, monkeypatch):
    settings = ["optim.lr=1e-9", "train.epochs=6", "train.eval_every=2", "train.early_stopping=3"]
    settings += ["machine.save_every=2", "train.checkpoint=last"]
    straight = outcome(carry_out(*settings, "study=straight"), tmp_path)
    write = Checkpoints.write

    def write_and_die(self, step, state):
        write(self, step, state)
        if step == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "write", write_and_die)
        with pytest.raises(KeyboardInterrupt):
            carry_out(*settings, "study=cut")
    assert straight["row"]["steps.done"] == 8
    assert outcome(carry_out(*settings, "study=cut"), tmp_path) == straight


def test_a_finished_run_leaves_no_checkpoint(carry_out, tmp_path):
    record = carry_out("machine.save_every=1", "train.max_steps=3")
    names = {path.name for path in folder_of(record, tmp_path).iterdir()}
    assert names == {"adapter", "config.yaml", "metrics.jsonl", "predictions.parquet", "ranks.jsonl", "record.json"}
