"""A class for each word: which tokens count, which entities are found, and what is wrong with rows."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
import torch

from tests.composing import composed
from tests.conftest import folder_of
from tests.trainer.objectives import language, other_kinds
from trainer.errors import ConfigError
from trainer.loop.batches import Collator
from trainer.loop.network import Network
from trainer.objectives.objective import IGNORED
from trainer.runs import assemble

KIND = "token_classification"
GOOD = {"tokens": ["Ann", "film", "Rome"], "tags": ["B-PER", "O", "B-LOC"]}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return other_kinds.model(KIND, tmp_path_factory.mktemp("bert"))


@pytest.fixture
def checked(bert, tmp_path):
    """The parts of a run on rows of one's own, before any weight is loaded."""

    def check(rows, *more, model=bert):
        path = language.write(tmp_path / "rows.jsonl", rows)
        files = [f"task.source.{name}_path={path}" for name in ("train", "validation")]
        return assemble.check(composed([*other_kinds.overrides(KIND, model, tmp_path), *files, *more]))

    return check


def labelled(parts, place=0):
    """The tokens of a training row that count, as text, each with its class."""
    row = parts.rows.train[place]
    pairs = zip(row["input_ids"], row["labels"], strict=True)
    return [
        (parts.tokenizer.decode([token]).strip("Ġ "), parts.rows.labels[tag]) for token, tag in pairs if tag != IGNORED
    ]


@pytest.mark.parametrize("family", ["Bert", "Roberta", "GPT2", "DebertaV2", "Llama"])
def test_the_first_token_of_a_word_counts_and_no_other(family, checked, tmp_path):
    """Words that the vocabulary does not have, and one of punctuation, through tokenizers of different kinds."""
    row = {"tokens": ["Annabel", "film", "--", "U.S."], "tags": ["B-PER", "O", "O", "B-LOC"]}
    parts = checked([row, GOOD], model=other_kinds.model(KIND, tmp_path / "model", family))
    found = labelled(parts)
    assert [name for _, name in found] == row["tags"]
    assert all(word.startswith(token) for (token, _), word in zip(found, row["tokens"], strict=True))
    assert len(parts.rows.train[0]["input_ids"]) > len(found)


def test_the_loss_is_transformers_own_and_padding_does_not_count(checked):
    parts = checked([GOOD, {"tokens": ["a"], "tags": ["O"]}])
    collate = Collator(parts.objective.pad(parts.source), parts.objective.weigh)
    batch = collate([parts.rows.train[0], parts.rows.train[1]])
    assert batch.weight == 4 and (batch.labels[batch.inputs["attention_mask"] == 0] == IGNORED).all()
    model = assemble.load(parts).eval()
    found = parts.objective.loss(Network(model, parts.source, torch.device("cpu"), False), batch)
    with torch.no_grad():
        own = float(model(**batch.inputs, labels=batch.labels).loss)
    assert float(found.mean.detach()) == pytest.approx(own, abs=1e-6)
    assert collate([parts.rows.train[0] | {"weight": 0}]).weight == 0


def test_scores_are_seqevals(bert, tmp_path):
    from seqeval import metrics

    from trainer.runs.run import run
    from trainer.sweeps.plan import plan

    everything = [*other_kinds.overrides(KIND, bert, tmp_path), other_kinds.table(KIND, tmp_path), "train.max_steps=24"]
    record = run(plan(composed(everything)), everything)
    kept = pd.read_parquet(folder_of(record, tmp_path) / "predictions.parquet")
    right, guess = ([text.split() for text in kept[name]] for name in ("reference", "prediction"))
    assert 0 < record.metrics["f1"] < 1
    for name in ("precision", "recall", "f1", "accuracy"):
        assert record.metrics[name] == pytest.approx(getattr(metrics, f"{name}_score")(right, guess))
    assert set(kept.unit) == {"sentence"}


def test_entities_of_hand_made_predictions(checked):
    """A name with one wrong word is made up and missed; one that is cut off is missed."""
    row = {"tokens": ["Ann", "Ann", "film", "Rome"], "tags": ["B-PER", "I-PER", "O", "B-LOC"]}
    parts = checked([row, GOOD])
    number = {name: place for place, name in enumerate(parts.rows.labels)}
    rows = parts.rows.report["validation"].view(np.array([0]))
    classes = np.array([number[name] for name in ("B-PER", "O", "B-LOC")])
    rows.columns["words"].numbers[:3] = [0, 1, 2]
    rows.columns["words"].ends[:] = [3, 6]  # of the first row's four words three have a token
    found, _ = parts.objective.evaluated(rows, [(classes, 1.0)])
    assert found.prediction == ["B-PER O B-LOC O"]
    expected = {"tp": 0, "fp": 2, "fn": 2, "correct": 1, "words": 4, "nll": 1.0, "tokens": 3}
    assert {name: column[0] for name, column in found.stats.items()} == expected


def test_words_that_are_cut_off_are_said_and_count(checked, caplog):
    row = {"tokens": ["Ann"] * 12, "tags": ["B-PER"] * 12}
    parts = checked([row, GOOD], "data.max_length=8")
    counted = len(labelled(parts))
    assert 0 < counted < 12 and parts.rows.truncated == 4
    lost = 15 - counted - len(labelled(parts, 1))
    ((warns, line),) = parts.objective.notes(parts.rows.report)
    assert warns and line.startswith(f"{lost} words of validation have no token")
    rows = parts.rows.report["validation"]
    found = [(np.zeros(len(rows.columns["words"][place]), int), 0.0) for place in rows.indices]
    assert parts.objective.evaluated(rows, found)[0].stats["words"].sum() == 15


def test_letters_of_a_special_token_are_a_word(checked):
    parts = checked([{"tokens": ["Ann", "[SEP]"], "tags": ["B-PER", "O"]}, GOOD])
    assert parts.rows.train[0]["input_ids"].count(parts.tokenizer.sep_token_id) == 1 and len(labelled(parts)) == 2


def test_classes_that_are_no_iob_tags_have_an_accuracy(checked):
    row = {"tokens": ["Ann", "film"], "tags": ["PROPN", "NOUN"]}
    parts = checked([row], "task.metrics=[accuracy]")
    assert parts.rows.labels == ("NOUN", "PROPN")
    with pytest.raises(ConfigError, match="'f1' with a class 'NOUN'"):
        checked([row])


@pytest.mark.parametrize(
    ("rows", "more", "line"),
    [
        ([{**GOOD, "tags": ["O"]}, GOOD], [], "task: row 1 of train: 3 words and 1 tags; allowed: as many"),
        ([{"tokens": [], "tags": []}, GOOD], [], "task: row 1 of train: it has no words"),
        ([{"tokens": [" "], "tags": ["O"]}, GOOD], [], "task: row 1 of train: word 1 is ' '; allowed: a text"),
        ([{**GOOD, "tokens": "Ann film"}], [], "column 'tokens': row 1 is 'Ann film'; allowed: a list of texts"),
        ([{**GOOD, "tags": ["O", 1.5, "O"]}], [], "column 'tags': row 1: row 2 is 1.5; allowed"),
        ([{"tokens": ["a"], "tags": ["O"]}], [], "task: classes O for a token classification; allowed: two or more"),
        ([GOOD], ["task.metrics=[rouge_l]"], "task.metrics: 'rouge_l' in a token classification; allowed: f1, "),
        ([{"tokens": ["a"], "tags": ["O"]}, GOOD], ["data.limit=1"], "data.limit: 1 leaves training rows"),
        ([{**GOOD, "tags": ["B-PER", "O", "U-LOC"]}], [], "task.metrics: 'f1' with a class 'U-LOC'"),
    ],
)
def test_what_is_wrong_is_one_line_before_a_weight_is_loaded(rows, more, line, checked):
    with pytest.raises(ConfigError) as caught:
        checked(rows, *more)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_of_classes_out_of_range_are_refused(checked):
    import dataclasses

    from trainer.data.sources.types import Split, TaskData

    parts = checked([GOOD])
    split = Split({"id": ["0"], "tokens": [["a", "b"]], "tags": [[0, 3]]})
    wrong = dataclasses.replace(parts.objective, content=TaskData({"train": split}, parts.rows.labels))
    with pytest.raises(ConfigError, match="row 1 of train: the tag of word 2 is 3; allowed: 0 to 2"):
        wrong.check()


def test_a_tag_that_is_evaluated_and_not_trained_is_said(tmp_path, caplog):
    from trainer.data.sources.files import Files

    paths = [
        language.write(tmp_path / f"{n}.jsonl", [row]) for n, row in enumerate([GOOD, {**GOOD, "tags": ["O"] * 3}])
    ]
    with caplog.at_level(logging.WARNING):
        Files(train_path=str(paths[1]), validation_path=str(paths[0]), tokens="tokens", tags="tags").load()
    assert "no row of train has the tags 'B-LOC', 'B-PER'" in caplog.text


def test_a_model_of_another_kind_is_one_line(checked, tmp_path):
    from tests.trainer.model import model_zoo

    with pytest.raises(ConfigError, match="bart, for which transformers has no AutoModelForTokenCl"):
        checked([GOOD], model=model_zoo.make(tmp_path / "model", "Bart"))
