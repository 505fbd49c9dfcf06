"""Language models: which tokens count, what is learned and scored, and that all of a run works with them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from tests.composing import composed
from tests.conftest import folder_of
from tests.trainer.objectives import language
from tests.trainer.objectives.conftest import FORMS, overrides
from trainer.errors import ConfigError
from trainer.loop.network import Network
from trainer.objectives import kinds
from trainer.objectives.objective import IGNORED
from trainer.runs import assemble
from trainer.sweeps.plan import plan

RESPONSE = ["task.source.prompt=prompt", "task.source.response=response", "task.metrics=[perplexity]"]
TEXT = FORMS["text"]
CHOICES = FORMS["choices"]


def pieces(parts, rows) -> list[tuple[str, str]]:
    """Of each row its tokens as text, and those that count."""
    decode = parts.tokenizer.decode
    found = []
    for place in range(len(rows)):
        row = rows[place]
        counted = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
        assert [label for label in row["labels"] if label != IGNORED] == counted
        found.append((decode(row["input_ids"]), decode(counted)))
    return found


def batch_of(parts, rows, places):
    from trainer.loop.batches import Collator

    collate = Collator(parts.objective.pad(parts.source), parts.objective.weigh)
    return collate([rows[place] for place in places])


# -- which tokens count ---------------------------------------------------------------------------


def test_of_a_prompt_and_its_response_the_response_counts_and_its_end(checked):
    rows = [{"prompt": "a warm film is", "response": "12"}, {"prompt": "dull plot: ", "response": "a pale hero"}]
    parts = checked(rows, *RESPONSE)
    assert pieces(parts, parts.rows.train) == [
        ("<s>a warm film is 12</s>", " 12</s>"),
        ("<s>dull plot: a pale hero</s>", " a pale hero</s>"),
    ]


def test_on_request_all_counts_but_the_first_token(checked):
    parts = checked([{"prompt": "a film", "response": "12"}], *RESPONSE, "task.loss_on=all")
    assert pieces(parts, parts.rows.train) == [("<s>a film 12</s>", "a film 12</s>")]


def test_of_a_conversation_the_last_message_counts(checked):
    turns = [("assistant", "a"), ("user", "film"), ("assistant", "3")]
    messages = [{"role": role, "content": content} for role, content in turns]
    parts = checked([{"messages": messages}], *FORMS["messages"], "data.max_length=100")
    whole = "<|assistant|>a</s><|user|>film</s><|assistant|>3</s>"
    assert pieces(parts, parts.rows.train) == [(whole, "3</s>")]


def test_texts_fill_blocks_and_no_text_is_begun_by_the_one_before(checked):
    parts = checked([{"text": "a film"}, {"text": "dull plot"}, {"text": "a"}], *TEXT, "data.max_length=5")
    found = pieces(parts, parts.rows.train)
    assert "".join(whole for whole, _ in found) == "<s>a film</s><s>dull plot</s><s>a</s>"
    assert "".join(counted for _, counted in found) == "a film</s>dull plot</s>a</s>"
    positions = [parts.rows.train[place]["position_ids"] for place in range(len(parts.rows.train))]
    assert [row.index(0) for row in positions] == [0] * len(positions)  # each block begins anew
    assert parts.rows.counts == {"train": 3, "select": 3, "validation": 3}


@pytest.mark.parametrize("family", ["Llama", "GPT2", "GPTNeoX", "Qwen2", "Mistral"])
def test_texts_of_a_block_do_not_see_each_other(family, checked, tmp_path, caplog):
    texts = ["a film", "dull plot", "a warm cast"]
    model = language.make(tmp_path / "model", family)
    parts = checked([{"text": text} for text in texts], *TEXT, "data.max_length=32", model=model)
    network = Network(assemble.load(parts).eval(), parts.source, torch.device("cpu"), False)
    (block,) = parts.rows.train
    begun = [place for place, position in enumerate(block["position_ids"]) if position == 0]
    assert len(begun) == 3
    found = parts.objective.loss(network, batch_of(parts, parts.rows.train, [0]))
    alone = 0.0
    for start, end in itertools.pairwise([*begun, len(block["input_ids"])]):
        ids = torch.tensor([block["input_ids"][start:end]])
        logits = network.model(input_ids=ids).logits[0, :-1]
        alone += float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))
    assert found.weight == len(block["input_ids"]) - 3
    assert float(found.sum) == pytest.approx(alone, rel=1e-5) and "can't keep apart" not in caplog.text


def test_a_text_is_evaluated_in_windows_that_count_each_token_once(checked):
    text = "a warm film with a bright cast and a slow and hollow ending"
    parts = checked([{"text": text}, {"text": "a"}], *TEXT, "data.max_length=6")
    rows = parts.rows.report["validation"]
    tokens = parts.tokenizer(text, add_special_tokens=False)["input_ids"]
    counted = [n for place in range(len(rows)) for n in rows[place]["labels"] if n != IGNORED]
    assert len(counted) == len(tokens) + 1 and max(rows.lengths) == 6
    assert sorted(counted) == sorted([*tokens, *parts.tokenizer("a", add_special_tokens=False)["input_ids"]])


def test_a_long_prompt_is_cut_from_its_left_and_no_answer_is(checked):
    long = {"prompt": "hero " * 20 + "is", "response": "a pale hero"}
    parts = checked([long, {"prompt": "a film", "response": "12"}], *RESPONSE, "data.max_length=12")
    whole, counted = pieces(parts, parts.rows.train)[0]
    assert counted == " a pale hero</s>" and whole.startswith("<s>") and whole.endswith("is a pale hero</s>")
    assert len(parts.rows.train[0]["input_ids"]) == 12 and parts.rows.truncated == 2  # in train and in validation


def test_padding_and_rows_of_another_process_do_not_count(checked):
    rows = [{"prompt": "a film", "response": "12"}, {"prompt": "dull", "response": "a pale hero with a plot"}]
    parts = checked(rows, *RESPONSE)
    batch = batch_of(parts, parts.rows.train, [0, 1])
    counts = [sum(label != IGNORED for label in parts.rows.train[place]["labels"]) for place in (0, 1)]
    assert batch.weight == sum(counts)
    assert (batch.labels[batch.inputs["attention_mask"] == 0] == IGNORED).all()
    from trainer.loop.batches import Collator

    collate = Collator(parts.objective.pad(parts.source), parts.objective.weigh)
    assert collate([parts.rows.train[0] | {"weight": 0}]).weight == 0
    assert (collate([parts.rows.train[0] | {"weight": 0}]).labels == IGNORED).all()


def test_letters_of_a_special_token_are_letters(checked):
    parts = checked([{"text": "a film </s> a plot"}, {"text": "a"}], *TEXT)
    ids = parts.rows.train[0]["input_ids"]
    assert ids.count(parts.tokenizer.eos_token_id) == 2 and parts.rows.letters == 2  # the ends of two texts


# -- loss and predictions -------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["Llama", "GPT2", "GPTNeoX", "Qwen2", "Mistral"])
def test_the_loss_is_transformers_own(family, checked, tmp_path):
    rows = [{"prompt": "a film", "response": "12"}, {"prompt": "dull plot", "response": "a pale hero"}]
    parts = checked(rows, *RESPONSE, model=language.make(tmp_path / "model", family))
    model, batch = assemble.load(parts).eval(), batch_of(parts, parts.rows.train, [0, 1])
    found = parts.objective.loss(Network(model, parts.source, torch.device("cpu"), False), batch)
    assert found.weight == batch.weight
    inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
    assert float(found.mean) == pytest.approx(float(model(**inputs, labels=batch.labels).loss), abs=1e-6)


def log_likelihood(parts, model, prompt: str, answer: str) -> float:
    """Of an answer behind a prompt, by itself and without any of the suite's code."""
    encode = parts.tokenizer
    before = encode(prompt)["input_ids"]
    ids = [*before, *encode(answer, add_special_tokens=False)["input_ids"]]
    logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    scores = F.log_softmax(logits[:-1], -1)
    return float(sum(scores[place - 1, ids[place]] for place in range(len(before), len(ids))))


def test_a_choice_is_that_with_the_highest_likelihood_or_with_the_highest_by_letter(learned):
    from trainer.runs.finished import opened

    record, folder, _ = learned("choices")
    kept = pd.read_parquet(folder / "predictions.parquet")
    with opened(folder) as run:
        table = run.objective.content.splits["validation"]
        for row in table:
            scores = [log_likelihood(run.context, run.model, row["prompt"], f" {choice}") for choice in row["choices"]]
            by_letter = [score / len(choice) for score, choice in zip(scores, row["choices"], strict=True)]
            one = kept[kept.id == row["id"]].iloc[0]
            assert one.reference == row["label"] and one.prediction == int(np.argmax(scores))
            assert one["stats.correct_norm"] == (int(np.argmax(by_letter)) == row["label"])
            assert one["stats.nll"] == pytest.approx(-scores[row["label"]], rel=1e-5)
    assert record.metrics["accuracy"] == (kept.prediction == kept.reference).mean()


def test_a_checkpoints_settings_of_generation_have_no_say(checked):
    """One that forbids a token twice, and asks for so many, as some chat models' files do."""
    from transformers import GenerationConfig

    rows = [{"prompt": "a warm film is", "response": "1"}, {"prompt": "a plot", "response": "2"}]
    parts = checked(rows, *FORMS["response"], "task.max_new_tokens=8")
    network = Network(assemble.load(parts).eval(), parts.source, torch.device("cpu"), False)
    batch = batch_of(parts, parts.rows.report["validation"], [0, 1])
    found = []
    for own in ({}, {"no_repeat_ngram_size": 1, "min_length": 30, "suppress_tokens": list(range(5, 300))}):
        network.model.generation_config = GenerationConfig(**own)
        found.append([one[-1] for one in parts.objective.predict(network, batch)])
    assert found[0] == found[1] and network.model.generation_config.no_repeat_ngram_size == 1


def test_what_is_written_does_not_depend_on_the_prompts_beside_it(checked):
    rows = [{"prompt": "a " * n + "film is", "response": str(n)} for n in (1, 3, 9)]
    parts = checked(rows, *FORMS["response"])
    network = Network(assemble.load(parts).eval(), parts.source, torch.device("cpu"), False)
    rows = parts.rows.report["validation"]
    together = parts.objective.predict(network, batch_of(parts, rows, [0, 1, 2]))
    alone = [parts.objective.predict(network, batch_of(parts, rows, [place]))[0] for place in range(3)]
    assert [found[-1] for found in together] == [found[-1] for found in alone]
    assert [found[0] for found in together] == pytest.approx([found[0] for found in alone], rel=1e-5)
    ids = torch.tensor([rows[2]["prompt"]])
    greedy = ids
    for _ in range(4):
        greedy = torch.cat([greedy, network.model(input_ids=greedy).logits[:, -1:].argmax(-1)], dim=1)
    new = greedy[0, ids.shape[1] :]
    assert alone[2][-1] == parts.tokenizer.decode(new, skip_special_tokens=True).strip()


@pytest.mark.parametrize("form", FORMS)
def test_a_run_learns_and_analysis_computes_its_metrics_again(form, learned):
    from analysis.comparison import predictions
    from analysis.records.runs import Run

    record, folder, _ = learned(form)
    assert record.params.head == 0 and record.data.labels is None and record.time.tokens_per_second > 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/task_loss"] for line in lines if "train/task_loss" in line]
    assert losses[-1] < losses[0]
    run = Run(str(folder), record)
    found = predictions.of_split(predictions.table(run), run, "validation", record.metric.name)
    assert {name: found.score(name) for name in record.metrics} == pytest.approx(record.metrics)
    assert (record.metric.percent, record.metric.higher_is_better) == (
        (False, False) if form in ("text", "messages") else (True, True)
    )


@pytest.mark.slow
def test_two_runs_are_compared_over_their_texts(trained, tmp_path, monkeypatch, capsys):
    from analysis.commands import cli

    for variant in ("lora", "svft"):
        trained("choices", f"variant={variant}")
    assert cli.main(["compare", "lora", "svft", str(tmp_path / "runs"), "--resamples", "100"]) == 0
    assert "McNemar" in capsys.readouterr().out


# -- all that a run is ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["response", "text"])
def test_a_dry_run_says_what_the_run_needs(form, learned):
    from trainer.runs import dry_run

    record, _, settings = learned(form)
    found = dry_run.predict(plan(composed(settings)))
    assert found.head == 0 and found.batch.unit == "token" and found.adapter == record.params.adapter_start
    assert found.activations == record.memory.activations and found.optimizer == record.memory.optimizer


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [["model.dtype=bfloat16"], ["train.autocast=true", "train.gradient_checkpointing=true"]]
)
@pytest.mark.parametrize("form", ["response", "choices"])
def test_it_trains_in_half_precision_and_with_recomputed_blocks(form, more, trained):
    assert trained(form, *more).status == "done"


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["full", "sora", "adalora", "svft", "peft_lora"])
def test_methods_adapt_a_language_model(variant, trained):
    assert trained("choices", f"variant={variant}").status == "done"


@pytest.mark.parametrize("tied", [True, False])
def test_what_makes_words_is_never_trained_unasked(tied, checked, tmp_path):
    model = language.make(tmp_path / "model", tie_word_embeddings=tied)
    parts = checked([{"text": "a film"}, {"text": "dull"}], *TEXT, "variant.targets=all-linear", model=model)
    loaded = assemble.load(parts)
    adapted = {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert adapted and not any("lm_head" in name or "embed" in name for name in adapted)


@pytest.mark.parametrize("to", ["peft", "merged"])
def test_exported_it_is_the_same_model(to, learned):
    from transformers import AutoModelForCausalLM

    from weights import cli

    folder = learned("response")[1]
    assert cli.main(["export", str(folder), "--to", to]) == 0
    made = folder / "export" / to
    if to == "peft":
        assert json.loads((made / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    else:
        assert AutoModelForCausalLM.from_pretrained(made).lm_head.weight.shape[1] == 16


@pytest.mark.slow
def test_interrupted_it_ends_with_the_same_bits(trained, monkeypatch, tmp_path):
    from safetensors.torch import load_file

    from trainer.loop.loop import Loop

    straight = trained("response", "variant.dropout=0.2", "machine.save_every=2", "study=straight")
    step = Loop.make_step

    def dies(self, index, batches):
        if index == 6:
            raise KeyboardInterrupt
        step(self, index, batches)

    monkeypatch.setattr(Loop, "make_step", dies)
    with pytest.raises(KeyboardInterrupt):
        trained("response", "variant.dropout=0.2", "machine.save_every=2", "study=cut")
    monkeypatch.undo()
    resumed = trained("response", "variant.dropout=0.2", "machine.save_every=2", "study=cut")
    one, two = (load_file(folder_of(record, tmp_path) / "adapter/state.safetensors") for record in (straight, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one) and resumed.metrics == straight.metrics


@pytest.mark.slow
def test_two_processes_average_over_tokens_as_one_does(llama, tables, tmp_path, trained):
    from safetensors.torch import load_file

    from tests.trainer.machine import pair
    from trainer import record as records

    one = trained("response", "variant.dropout=0", "optim.lr=1e-3", "train.batch_size=8", "study=one")
    halves = [*overrides(llama, tmp_path), *tables["response"], "variant.dropout=0", "optim.lr=1e-3", "study=two"]
    with pair.started(pair.run, composed(halves), tmp_path) as both:
        assert both.ends() == [0, 0], [path.read_text() for path in tmp_path.glob("error-*")]
    (folder,) = (Path(place) for place in records.find(tmp_path / "runs" / "two"))
    two = records.read(folder)
    weights = [load_file(path / "adapter/state.safetensors") for path in (folder_of(one, tmp_path), folder)]
    for name in weights[0]:
        torch.testing.assert_close(weights[1][name], weights[0][name], rtol=1e-4, atol=1e-5)
    assert two.metrics["perplexity"] == pytest.approx(one.metrics["perplexity"], rel=1e-4)


# -- what is wrong --------------------------------------------------------------------------------

GOOD = {"prompt": "a film", "response": "12"}
PICKED = {"prompt": "a film", "choices": ["a", "b"], "label": 0}


@pytest.mark.parametrize(
    ("rows", "more", "line"),
    [
        ([GOOD, {**GOOD, "response": " "}], RESPONSE, "column 'response': row 2 is empty"),
        ([GOOD], [*RESPONSE, "task.metrics=[accuracy]"], "task.metrics: 'accuracy' in a language model of responses"),
        ([GOOD], [*RESPONSE, "task.loss_on=prompt"], "task.loss_on: 'prompt', allowed: response, all"),
        ([GOOD], [*RESPONSE, "task.max_new_tokens=0"], "task.max_new_tokens: 0, allowed: a whole number"),
        (
            [GOOD],
            [*RESPONSE, "task.metrics=[bleu]", "task.max_new_tokens=40"],
            "task.max_new_tokens: 40, allowed: below",
        ),
        ([{**GOOD, "response": "hero " * 40}], RESPONSE, "data.max_length: 32, and the answer of row 1 of train"),
        (
            [{**GOOD, "response": "hero"}],
            [*RESPONSE, "task.metrics=[numeric_match]"],
            "row 1 of validation has the answer",
        ),
        ([{**PICKED, "choices": ["a"]}], CHOICES, "task: row 1 of train: 1 choice; allowed: two or more"),
        ([{**PICKED, "label": 2}], CHOICES, "task: row 1 of train: its label is 2; allowed: the number of the right"),
        ([{**PICKED, "label": None}], CHOICES, "column 'label': row 1 is None"),
        ([{**PICKED, "choices": "a"}], CHOICES, "column 'choices': row 1 is 'a'; allowed: a list of texts"),
        (
            [{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}],
            FORMS["messages"],
            "task: row 1 of train: its last message is of the role 'user'",
        ),
        ([{"messages": "hello"}], FORMS["messages"], "column 'messages': row 1 is 'hello'"),
        ([GOOD], ["task.source.prompt=prompt"], "task.source: columns for prompt; allowed: messages; prompt, response"),
        ([GOOD], [*RESPONSE, "variant=head"], "variant.name: 'head' trains nothing where the task has no head"),
    ],
)
def test_what_is_wrong_is_one_line_before_a_weight_is_loaded(rows, more, line, checked):
    with pytest.raises(ConfigError) as caught:
        checked(rows, *more)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_without_chat_template_is_refused(checked, tmp_path):
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    with pytest.raises(ConfigError, match="rows of messages, and the model's tokenizer has no chat template"):
        checked(rows, *FORMS["messages"], model=language.make(tmp_path / "model"))


REFUSING = "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('No ' + m.role) }}"
REFUSING += "{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"


def test_a_conversation_that_the_chat_template_refuses_is_named(checked, tmp_path):
    answer = {"role": "assistant", "content": "b"}
    rows = [{"messages": [{"role": role, "content": f"a {n}"}, answer]} for n, role in enumerate(["user", "system"])]
    line = r"task: row 2 of train: the tokenizer's chat template refuses it \(TemplateError: No system\); allowed: "
    with pytest.raises(ConfigError, match=line):
        checked(rows, *FORMS["messages"], model=language.make(tmp_path / "model", template=REFUSING))


def test_a_language_models_rows_without_a_kind_say_what_a_task_without_one_is():
    with pytest.raises(ConfigError, match=r"'perplexity' in a classification or regression \(task\.kind is null\)"):
        kinds.of(composed(["task=news", "task.kind=null"]).task)


def test_an_encoder_that_sees_what_is_to_come_is_refused(checked, tmp_path):
    model = language.make(tmp_path / "model", "Roberta")
    parts = checked([{"text": "the film"}, {"text": "a very dull plot"}], *TEXT, model=model)
    with pytest.raises(ConfigError, match="reads tokens that are still to come"):
        assemble.load(parts)
