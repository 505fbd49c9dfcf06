"""Every family of models, down every path: dry run, training, a resumed run, both exports, loaded by others."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from tests.conftest import folder_of, tiny_run
from tests.trainer.families import FAMILIES, write
from trainer.loop.checkpoints import Checkpoints
from trainer.runs.dry_run import predict
from trainer.runs.finished import opened
from trainer.runs.run import run
from trainer.sweeps.plan import plan
from weights.cli import main

peft = pytest.importorskip("peft")

pytestmark = pytest.mark.slow

TEXTS = ["a lovely film", "the plot is awful very awful very awful", "dull"]
LABELS = {0: "bad", 1: "good"}


@pytest.fixture
def carried(configured, tiny_task, tmp_path):
    """(overrides of a run of two steps, what carries out a run with them) for a model's folder."""

    def of(model, *further: str):
        overrides = [*tiny_run(model, tiny_task, tmp_path), "variant=lora", "variant.rank=2", "train.max_steps=2"]
        overrides += ["data.max_length=16", "train.checkpoint=last", *further]
        return overrides, lambda *more: run(plan(configured([*overrides, *more])), overrides)

    return of


def dies_after(step: int, monkeypatch) -> None:
    """The process ends when the checkpoint of `step` is written, once."""
    write_checkpoint, stops = Checkpoints.write, [step]

    def write_and_die(self, now, *rest):
        write_checkpoint(self, now, *rest)
        if now in stops:
            stops.remove(now)
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "write", write_and_die)


@torch.no_grad()
def logits(model, batch) -> torch.Tensor:
    return model.eval()(**batch).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_goes_all_the_way(family, carried, configured, tmp_path, monkeypatch):
    model = write(family, tmp_path / "model")
    overrides, carry_out = carried(model)

    prediction = predict(plan(configured(overrides)))
    record = carry_out()
    assert record.status == "done" and prediction.total == record.params.total
    assert (prediction.adapter, prediction.head) == (record.params.adapter_start, record.params.head)
    for part in ("weights", "gradients", "optimizer", "activations"):
        # A router chooses by what it has learned, and how much a mixture of experts keeps follows from it.
        assert getattr(prediction, part) == pytest.approx(getattr(record.memory, part), rel=0.05), part

    dies_after(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        carry_out("study=cut", "machine.save_every=1")
    again = carry_out("study=cut", "machine.save_every=1")
    folder, other = (folder_of(row, tmp_path) for row in (record, again))
    frames = [pd.read_parquet(place / "predictions.parquet") for place in (folder, other)]
    assert frames[0].equals(frames[1])

    batch = dict(AutoTokenizer.from_pretrained(model)(TEXTS, return_tensors="pt", padding=True))
    with opened(folder) as finished:
        wanted = logits(finished.model, batch)
    for to in ("merged", "peft"):
        assert main(["export", str(folder), "--to", to]) == 0
        place = folder / "export" / to
        assert AutoTokenizer.from_pretrained(place).pad_token == "<pad>"
        config = AutoConfig.from_pretrained(place)
        assert config.id2label == LABELS and config.pad_token_id == 1
        assert config.problem_type == "single_label_classification"
        if to == "merged":
            found = AutoModelForSequenceClassification.from_pretrained(place)
        else:
            base = AutoModelForSequenceClassification.from_pretrained(model, config=config)
            found = peft.PeftModel.from_pretrained(base, place)
        torch.testing.assert_close(logits(found, batch), wanted, rtol=1e-4, atol=1e-5)


def test_an_export_says_the_task_and_the_dropout_of_the_run_not_those_of_an_older_checkpoint(carried, tmp_path):
    model = write("bert", tmp_path / "model", labels=3, problem_type="multi_label_classification")
    _, carry_out = carried(model, "model.dropout=0.3")
    folder = folder_of(carry_out(), tmp_path)
    for to in ("merged", "peft"):
        assert main(["export", str(folder), "--to", to]) == 0
        config = json.loads((folder / "export" / to / "config.json").read_text())
        assert config["problem_type"] == "single_label_classification" and config["hidden_dropout_prob"] == 0.3
        assert config["id2label"] == {"0": "bad", "1": "good"} and config["label2id"] == {"bad": 0, "good": 1}


@pytest.mark.parametrize("family", ["mixtral", "qwen3-moe", "xlnet"])
def test_what_all_linear_does_not_reach_is_said_and_recorded(family, carried, tmp_path, caplog):
    _, carry_out = carried(write(family, tmp_path / "model"))
    record = carry_out()
    (line,) = [text for text in caplog.messages if "doesn't adapt everything" in text]
    assert ("rel_attn.q" if family == "xlnet" else "mlp.experts.gate_up_proj") in line
    assert record.method["left_out"] > record.params.adapter_start


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5", "deberta-v2", "falcon"])
def test_where_it_reaches_all_nothing_is_said(family, carried, tmp_path, caplog):
    _, carry_out = carried(write(family, tmp_path / "model"))
    record = carry_out()
    assert not {"left_out", "without_gradient"} & record.method.keys()
    assert not [text for text in caplog.messages if "adapt everything" in text or "had a gradient" in text]
    assert record.params.effective == record.params.adapter_end


@pytest.mark.parametrize("variant", ["lora", "full", "peft_lora"])
def test_what_no_text_reaches_is_said_and_not_counted(variant, configured, tiny_task, tmp_path, caplog):
    overrides = tiny_run(write("xmod", tmp_path / "model"), tiny_task, tmp_path)
    overrides += [f"variant={variant}", "train.max_steps=3"]
    record = run(plan(configured(overrides)), overrides)
    assert any("never had a gradient" in text and "de_DE" in text for text in caplog.messages)
    never = record.method["without_gradient"]
    assert never > 0 and record.params.effective == record.params.adapter_end - never


def test_longformers_last_layer_is_read_at_the_one_place_that_attends_by_other_weights(carried, tmp_path, caplog):
    _, carry_out = carried(write("longformer", tmp_path / "model"))
    record = carry_out()
    (line,) = [text for text in caplog.messages if "never had a gradient" in text]
    assert all(f"layer.1.attention.self.{name}" in line for name in ("query", "key", "value")) and "layer.0" not in line
    assert record.params.adapter_end - record.params.effective == 3 * 2 * (16 + 16)
