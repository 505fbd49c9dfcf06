"""PEFT's prompts before texts of every kind that reads tokens: PEFT's own class for the task puts them there."""

from __future__ import annotations

import pytest
import torch

from tests.composing import composed
from tests.trainer.objectives import other_kinds
from trainer.errors import ConfigError
from trainer.runs import assemble

PROMPT = ["variant=peft_prompt_tuning", "variant.options.num_virtual_tokens=2"]
PREFIX = ["variant=peft_prefix_tuning", "variant.options.num_virtual_tokens=2"]


@pytest.fixture
def loaded(tmp_path):
    def load(kind, family, method):
        folder = other_kinds.model(kind, tmp_path / "model", family)
        overrides = [*other_kinds.overrides(kind, folder, tmp_path), other_kinds.table(kind, tmp_path), *method]
        context = assemble.check(composed(overrides))
        return context, assemble.load(context).eval()

    return load


@pytest.mark.parametrize("method", [PROMPT, PREFIX], ids=["prompt", "prefix"])
@pytest.mark.parametrize(
    ("kind", "family", "task"),
    [
        ("extractive_qa", "Roberta", "QUESTION_ANS"),
        ("token_classification", "Bert", "TOKEN_CLS"),
        ("seq2seq", "T5", "SEQ_2_SEQ_LM"),
        ("seq2seq", "Bart", "SEQ_2_SEQ_LM"),
    ],
)
def test_a_prompt_is_where_the_tasks_outputs_are(kind, family, task, method, loaded):
    context, model = loaded(kind, family, method)
    assert model.peft_config["default"].task_type == task
    rows = [context.rows.train[row] for row in range(3)]
    inputs = {name: tensor for name, tensor in context.objective.pad(context.source)(rows).items() if name != "labels"}
    inputs = {name: inputs[name] for name in context.tokenizer.model_input_names if name in inputs}
    own = {"decoder_input_ids": inputs["input_ids"][:, :2]} if kind == "seq2seq" else {}
    with torch.no_grad():
        prompted = model(**inputs, **own)[0]
        with context.variant.disabled():
            without = model(**inputs, **own)[0]
    places = without.shape[1]
    assert prompted.shape[1] in (places, places + 2)
    assert not torch.allclose(prompted[:, -places:], without)


@pytest.mark.parametrize("method", [PROMPT, PREFIX], ids=["prompt", "prefix"])
@pytest.mark.parametrize("family", ["T5", "Bart"])
def test_what_is_written_follows_from_the_prompt(family, method, loaded):
    context, model = loaded("seq2seq", family, method)
    for parameter in model.prompt_encoder.parameters():
        torch.nn.init.normal_(parameter, std=2.0)
    inputs = context.objective.pad(context.source)([context.rows.train[row] for row in range(3)])
    read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        found = model.generate(
            **read, max_new_tokens=4, min_new_tokens=4, output_logits=True, return_dict_in_generate=True
        )
        forced = model(**read, decoder_input_ids=found.sequences[:, :-1]).logits
    torch.testing.assert_close(torch.stack(found.logits, 1), forced, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [PROMPT, PREFIX], ids=["prompt", "prefix"])
def test_a_model_whose_inputs_pefts_class_drops_is_refused(method, loaded):
    with pytest.raises(ConfigError, match=r"variant\.method: (prefix|prompt)_tuning, allowed with this task and model"):
        loaded("extractive_qa", "Bert", method)
