"""Texts that are made of others: what is learned and counted, what is written, tied embeddings, bad rows."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.composing import composed
from tests.conftest import folder_of
from tests.trainer.model.model_zoo import ROBERTA, T5
from tests.trainer.objectives import language, other_kinds
from trainer.errors import ConfigError
from trainer.loop.batches import Collator
from trainer.loop.network import Network
from trainer.objectives.objective import IGNORED
from trainer.runs import assemble

KIND = "seq2seq"
FAMILIES = ["T5", "Bart", "Marian"]
ROWS = [{"source": "a warm film", "target": "Ann"}, {"source": "a dull plot of Rome", "target": "Oslo and Rome"}]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {name: other_kinds.model(KIND, tmp_path_factory.mktemp(name), name) for name in FAMILIES}


@pytest.fixture
def told(models, tmp_path):
    """The overrides of a run on rows of one's own."""

    def overrides(rows, *more, model):
        path = language.write(tmp_path / f"rows-{len(list(tmp_path.iterdir()))}.jsonl", rows)
        files = [f"task.source.{name}_path={path}" for name in ("train", "validation")]
        return [*other_kinds.overrides(KIND, models.get(model, model), tmp_path), *files, *more]

    return overrides


@pytest.fixture
def checked(told):
    """The parts of a run on rows of one's own, before any weight is loaded."""
    return lambda rows, *more, model="T5": assemble.check(composed(told(rows, *more, model=model)))


@pytest.fixture
def trained(told, tmp_path):
    """Carries out a run; its folder and its record."""

    def carried_out(model, *more, rows=None):
        from trainer.runs.run import run
        from trainer.sweeps.plan import plan

        everything = told(rows or other_kinds.rows(KIND), *more, model=model)
        record = run(plan(composed(everything)), everything)
        return folder_of(record, tmp_path), record

    return carried_out


def batch_of(parts, rows=(0, 1)):
    collate = Collator(parts.objective.pad(parts.source), parts.objective.weigh)
    return collate([parts.rows.train[row] for row in rows])


@pytest.mark.parametrize(
    ("family", "roles", "start", "first"), [("T5", T5, "pad", None), ("Bart", ROBERTA, "eos", "bos")]
)
def test_a_target_and_its_end_are_learned_from_the_start_token_on(family, roles, start, first, checked):
    parts = checked(ROWS, model=family)
    words, batch = parts.tokenizer, batch_of(parts)
    special = [words.convert_tokens_to_ids(roles[first])] if first else []
    expected = [*special, *words("Ann", add_special_tokens=False)["input_ids"], words.eos_token_id]
    labels, read = batch.labels[0], batch.inputs["decoder_input_ids"][0]
    assert labels[: len(expected)].tolist() == expected and (labels[len(expected) :] == IGNORED).all()
    assert read[: len(expected)].tolist() == [words.convert_tokens_to_ids(roles[start]), *expected[:-1]]
    assert (read >= 0).all() and len(labels) > len(expected)
    assert batch.weight == int((batch.labels != IGNORED).sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_transformers_own_and_padding_does_not_count(family, checked):
    parts = checked(ROWS, model=family)
    network = Network(assemble.load(parts).eval(), parts.source, torch.device("cpu"), False)
    batch = batch_of(parts)
    inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        found = parts.objective.loss(network, batch)
        own = float(network.model(**inputs, labels=batch.labels).loss)
        alone = [parts.objective.loss(network, batch_of(parts, (row,))) for row in (0, 1)]
    assert float(found.mean) == pytest.approx(own, abs=1e-6)
    assert float(sum(one.sum for one in alone)) == pytest.approx(float(found.sum), rel=1e-5)
    assert sum(one.weight for one in alone) == found.weight == batch.weight


def test_a_row_of_weight_0_counts_nothing(checked):
    parts = checked(ROWS)
    collate = Collator(parts.objective.pad(parts.source), parts.objective.weigh)
    one, two = parts.rows.train[0], parts.rows.train[1]
    whole, half = collate([dict(one), dict(two)]), collate([dict(one), two | {"weight": 0}])
    assert 0 < half.weight < whole.weight and (half.labels[1] == IGNORED).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_the_likeliest_token_each_time_whatever_is_beside_it(family, checked):
    """Token by token without a cache or a batch, against all at once."""
    rows = [{"source": row["source"], "target": row["target"]} for row in other_kinds.rows(KIND)[:6]]
    parts = checked(rows, "task.max_new_tokens=6", model=family)
    network = Network(assemble.load(parts).eval(), parts.source, torch.device("cpu"), False)
    batch, words = batch_of(parts, range(6)), parts.tokenizer
    found = parts.objective.written(network, batch.inputs)
    for row, text in enumerate(found):
        ids = torch.tensor([parts.rows.train[row]["input_ids"]])
        read = [network.model.config.decoder_start_token_id]
        while len(read) <= 6 and words.eos_token_id not in read[1:]:
            with torch.no_grad():
                logits = network.model(input_ids=ids, decoder_input_ids=torch.tensor([read])).logits[0, -1]
            logits[words.pad_token_id] = -torch.inf
            read.append(int(logits.argmax()))
        assert text == words.decode(read[1:], skip_special_tokens=True).strip()


def test_a_checkpoints_settings_of_generation_have_no_say(models, checked, tmp_path):
    plain = checked(other_kinds.rows(KIND), model="Bart")
    folder = other_kinds.model(KIND, tmp_path / "other", "Bart")
    (folder / "generation_config.json").write_text(
        json.dumps({"min_length": 7, "no_repeat_ngram_size": 1, "num_beams": 4, "forced_bos_token_id": 9})
    )
    other = checked(other_kinds.rows(KIND), model=folder)
    texts = []
    for parts in (plain, other):
        network = Network(assemble.load(parts).eval(), parts.source, torch.device("cpu"), False)
        settings = network.model.generation_config.to_dict()
        texts.append(parts.objective.written(network, batch_of(parts, range(8)).inputs))
        assert network.model.generation_config.to_dict() == settings
    assert settings["no_repeat_ngram_size"] == 1 and texts[0] == texts[1]


def test_scores_are_those_of_the_libraries(trained):
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    names = "task.metrics=[bleu,chrf,rouge_1,rouge_l,perplexity,loss]"
    folder, record = trained("Bart", names, "variant=full", "optim.max_grad_norm=10", "train.max_steps=60")
    kept = pd.read_parquet(folder / "predictions.parquet")
    right, said = kept.reference.tolist(), kept.prediction.tolist()
    assert record.metrics["bleu"] == pytest.approx(BLEU().corpus_score(said, [right]).score)
    assert record.metrics["chrf"] == pytest.approx(CHRF().corpus_score(said, [right]).score)
    assert record.metrics["chrf"] > 0
    rouge = RougeScorer(["rouge1", "rougeL"], tokenizer=DefaultTokenizer(use_stemmer=True))
    found = [rouge.score(*pair) for pair in zip(right, said, strict=True)]
    for name, own in (("rouge_1", "rouge1"), ("rouge_l", "rougeL")):
        assert record.metrics[name] == pytest.approx(sum(one[own].fmeasure for one in found) / len(found))
    loss = kept["stats.nll"].sum() / kept["stats.tokens"].sum()
    assert record.metrics["loss"] == pytest.approx(loss)
    assert record.metrics["perplexity"] == pytest.approx(torch.tensor(loss).exp().item())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_and_tied_embeddings_are_neither_trained_nor_wrapped(family, trained, models, capsys):
    from trainer.runs.finished import opened
    from weights import cli

    folder, record = trained(family, "train.max_steps=40", "machine.log_every=10")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/task_loss"] for line in lines if "train/task_loss" in line]
    assert losses[-1] < losses[0] and record.params.head == 0
    before = transformers.AutoModelForSeq2SeqLM.from_pretrained(models[family])
    with opened(folder) as run:
        assert not any(name.endswith(("lm_head", "shared", "embed_tokens")) for name in run.variant.adapters)
        assert any(name.startswith(("encoder", "model.encoder")) for name in run.variant.adapters)
        assert any("decoder" in name for name in run.variant.adapters)
        words, output = run.model.get_input_embeddings().weight, run.model.get_output_embeddings().weight
        assert words is output and torch.equal(words, before.get_input_embeddings().weight)
        assert not words.requires_grad
    assert cli.main(["export", str(folder), "--to", "merged"]) == 0, capsys.readouterr()
    assert not [name for name in load_file(folder / "adapter/state.safetensors") if "lm_head" in name]


def test_an_output_layer_of_its_own_is_left_alone_by_all_linear_and_adapted_by_its_name(trained, tmp_path):
    from trainer.runs.finished import opened

    model = other_kinds.model(KIND, tmp_path / "untied", "Bart", tie_word_embeddings=False)
    for more, expected in (([], False), (["variant.targets=[lm_head]"], True)):
        folder, _ = trained(model, *more)
        with opened(folder) as run:
            assert ("lm_head" in run.variant.adapters) == expected
            assert not run.model.get_input_embeddings().weight.requires_grad


@pytest.mark.parametrize("family", FAMILIES)
def test_tied_embeddings_can_not_be_adapted_by_the_output_layers_name(family, checked):
    with pytest.raises(ConfigError, match=r"variant.targets"):
        checked(other_kinds.rows(KIND), "variant.targets=[lm_head]", model=family)


def test_a_long_source_is_cut_and_counted_and_a_long_target_refused(checked):
    long = "film " * 30
    parts = checked([{"source": long, "target": "Ann"}, ROWS[0]], "data.max_length=12")
    assert parts.rows.truncated == 2 and len(parts.rows.train[0]["input_ids"]) == 12
    assert parts.rows.train[0]["input_ids"][-1] == parts.tokenizer.eos_token_id
    with pytest.raises(
        ConfigError, match=r"data.max_length: 12, and the target of row 2 of train \('a warm film'\) has"
    ):
        checked([ROWS[0], {"source": "a warm film", "target": long}], "data.max_length=12")


def test_letters_of_a_special_token_are_letters(checked):
    parts = checked([{"source": "Ann </s> Bob", "target": "Rome </s> Oslo"}, ROWS[0]])
    row, end = parts.rows.train[0], parts.tokenizer.eos_token_id
    assert list(row["input_ids"]).count(end) == list(row["labels"]).count(end) == 1 and parts.rows.letters == 2


@pytest.mark.parametrize(
    ("rows", "more", "line"),
    [
        ([{"source": " ", "target": "a"}], [], "column 'source': row 1 is empty; allowed: a text in every row"),
        ([{"source": "a", "target": ""}], [], "column 'target': row 1 is empty; allowed: a text in every row"),
        (ROWS, ["task.max_new_tokens=0"], "task.max_new_tokens: 0, allowed: a whole number ≥ 1"),
        (ROWS, ["task.metrics=[accuracy]"], "'accuracy' in a task of sources and targets; allowed: exact_match"),
        (ROWS, ["task.metrics=[numeric_match]"], "row 1 of validation has the answer 'Ann'; allowed: answers with a n"),
        (ROWS, ["task.source.target=null"], "task.source: columns for source; allowed: "),
    ],
)
def test_what_is_wrong_is_one_line_before_a_weight_is_loaded(rows, more, line, checked):
    with pytest.raises(ConfigError) as caught:
        checked(rows, *more)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_models_that_can_not_do_it_are_one_line(checked, tmp_path):
    bert = other_kinds.model("token_classification", tmp_path / "bert")
    with pytest.raises(ConfigError, match="bert, for which transformers has no AutoModelForSeq2SeqLM"):
        checked(ROWS, model=bert)
    startless = other_kinds.model(KIND, tmp_path / "bart", "Bart", decoder_start_token_id=None)
    with pytest.raises(ConfigError, match="bart, whose decoder begins with no token of its own"):
        checked(ROWS, model=startless)
    with pytest.raises(ConfigError, match=r"task.max_new_tokens: 40, allowed: below 40"):
        checked(ROWS, "task.max_new_tokens=40", model="Bart")


def test_summaries_of_news_are_of_this_kind_by_two_settings():
    from trainer.objectives import kinds

    config = composed(["task=news_summary", "task.kind=seq2seq", "task.source.form=target"])
    assert kinds.metric(config.task).percent and kinds.target(config.task.kind).endswith(".Seq2Seq")


def test_the_largest_batch_is_the_one_with_most_tokens_of_sources_and_targets(told):
    """A long target under a short source needs more than the longest source does."""
    from trainer.runs import dry_run
    from trainer.runs.run import run
    from trainer.sweeps.plan import plan

    rows = [
        {"source": "a warm film with a bright cast", "target": "Ann"},
        {"source": "film", "target": "Ann " * 5 + "Oslo"},
    ]
    rows += [{"source": f"a film of {name}", "target": name} for name in ("Ann", "Oslo", "Rome", "Bob")]
    everything = told(rows, "train.batch_size=1", "train.max_steps=6", "train.eval_every=6", model="Bart")
    planned = plan(composed(everything))
    found = dry_run.predict(planned)
    assert found.batch.rows == [1] and found.batch.units > 10
    assert found.activations == pytest.approx(run(planned, everything).memory.activations, rel=0.1)
