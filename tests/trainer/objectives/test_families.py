"""Every kind of task above every family of models that can do it: a step, and predictions that don't depend on a batch.

A tiny model of random weights each, with a tokenizer of the family's kind. Decoders have no padding token of their own.
"""

from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoConfig

from tests.composing import composed
from tests.conftest import folder_of
from tests.trainer.objectives import language, other_kinds
from trainer.errors import ConfigError
from trainer.runs import assemble
from trainer.runs.finished import opened
from trainer.runs.run import run
from trainer.sweeps.plan import plan

ENCODERS = [
    *("Albert", "Bert", "DebertaV2", "DistilBert", "Electra", "FNet", "ModernBert", "Roberta", "XLNet"),
]
DECODERS = ["GPT2", "GPTNeoX", "Gemma", "Llama", "Mistral", "Qwen2", "Qwen3"]
CASES = [
    *(("token_classification", family) for family in [*ENCODERS, *DECODERS]),
    *(("extractive_qa", family) for family in [*ENCODERS, "Bart", "GPT2", "GPTNeoX", "Llama", "Mistral", "Qwen2"]),
    *(("seq2seq", family) for family in ("Bart", "Marian", "T5")),
]


def finished(told, tmp_path):
    """The folder of a run of two steps."""
    everything = [*told, "train.max_steps=2"]
    record = run(plan(composed(everything)), everything)
    assert record.status == "done" and record.params.adapter_start > 0
    return folder_of(record, tmp_path)


def together_and_alone(folder):
    """The predictions of a run's rows in batches, and one by one."""
    with opened(folder) as made:
        rows = made.context.rows.report["validation"]
        together = made.predictions(rows)
        made._loop.evaluator._size = 1
        return together, made.predictions(rows)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "family"), CASES)
def test_a_family_trains_and_predicts(kind, family, tmp_path):
    model = other_kinds.model(kind, tmp_path / "model", family)
    folder = finished([*other_kinds.overrides(kind, model, tmp_path), other_kinds.table(kind, tmp_path)], tmp_path)
    together, alone = together_and_alone(folder)
    assert list(together.prediction) == list(alone.prediction)
    for name in together.stats:
        np.testing.assert_allclose(together.stats[name], alone.stats[name], rtol=1e-4, atol=1e-5)


def test_albert_shares_its_layers_and_each_adapter_is_there_once(tmp_path):
    kind = "token_classification"
    model = other_kinds.model(kind, tmp_path / "model", "Albert")
    folder = finished([*other_kinds.overrides(kind, model, tmp_path), other_kinds.table(kind, tmp_path)], tmp_path)
    with opened(folder) as made:
        names = [name for name in made.variant.adapters if "query" in name]
        assert len(names) == 1 and made.model.config.num_hidden_layers == 2


@pytest.mark.parametrize("family", ["Albert", "XLNet"])
def test_a_model_without_gradient_checkpointing_is_refused_before_its_weights_are_loaded(family, tmp_path):
    kind = "token_classification"
    model = other_kinds.model(kind, tmp_path / "model", family)
    told = [*other_kinds.overrides(kind, model, tmp_path), other_kinds.table(kind, tmp_path)]
    with pytest.raises(ConfigError, match=f"train.gradient_checkpointing: true with {family}ForTokenClass"):
        assemble.check(composed([*told, "train.gradient_checkpointing=true"]))


@pytest.mark.parametrize("family", DECODERS)
def test_a_classifier_above_a_decoder_without_a_padding_token_reads_the_end_of_each_text(family, tmp_path):
    model = other_kinds.model("token_classification", tmp_path / "model", family)
    assert AutoConfig.from_pretrained(model).pad_token_id is None
    rows = [
        {"text": " ".join(row["tokens"]), "label": "Ann" in row["tokens"]}
        for row in other_kinds.rows("token_classification")
    ]
    path = language.write(tmp_path / "rows.jsonl", rows)
    told = [
        *("model=folder", f"model.path={model}", "model.name=tiny", "task=file", f"task.source.train_path={path}"),
        *("task.source.text=text", "task.source.holdout=0.3", "train.batch_size=4", "data.max_length=32"),
        *(f"runs_dir={tmp_path / 'runs'}", "study=test", "machine.progress=false", "machine.device=cpu"),
    ]
    together, alone = together_and_alone(finished(told, tmp_path))
    np.testing.assert_allclose(together.outputs, alone.outputs, rtol=1e-3, atol=1e-5)
    assert len({tuple(row) for row in together.outputs.round(4).tolist()}) > 1
