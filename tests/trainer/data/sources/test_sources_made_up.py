"""Computed sounds and ratings, and random models: what experiment=kinds tries kinds out with."""

from __future__ import annotations

import pytest
import torch
import transformers

from tests.composing import composed
from trainer.data.sounds import decoded
from trainer.data.sources.made_up import RATE, TONES, Tastes, Tones
from trainer.data.sources.random_model import RandomModel
from trainer.errors import ConfigError
from trainer.runs import assemble

CONFIG = {"vocab_size": 10, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


@pytest.mark.parametrize("text", [False, True])
def test_sounds_are_the_same_each_time_and_all_letters_are_played(text):
    one, two = Tones(text=text).load(), Tones(text=text).load()
    assert one == two and sum(map(len, one.splits.values())) == 240
    for rows in one.splits.values():
        assert {decoded(audio)[0] for audio in rows["audio"]} == {RATE}
        said = "".join(rows["text"]) if text else "".join(one.labels[label] for label in rows["label"])
        assert set(said) - {" "} == set(TONES)


def test_ratings_are_the_same_each_time_and_no_pair_is_on_both_sides():
    one, two = Tastes().load(), Tastes().load()
    assert one == two
    pairs = [{*zip(rows["user"], rows["item"], strict=True)} for rows in one.splits.values()]
    assert not pairs[0] & pairs[1] and sum(map(len, pairs)) == sum(map(len, one.splits.values()))
    assert {rating for rows in one.splits.values() for rating in rows["rating"]} == {1.0, 2.0, 3.0, 4.0, 5.0}


def test_a_random_model_is_drawn_once_and_leaves_the_generator_alone():
    state = torch.get_rng_state()
    source = RandomModel("BertForSequenceClassification", CONFIG, {"vocab.json": {"a": 0}})
    folder = source.fetch()
    assert torch.equal(torch.get_rng_state(), state) and (folder / "vocab.json").is_file()
    one, two = (
        transformers.AutoModel.from_pretrained(RandomModel("BertForSequenceClassification", CONFIG, seed=seed).fetch())
        for seed in (0, 1)
    )
    assert not torch.equal(one.embeddings.word_embeddings.weight, two.embeddings.word_embeddings.weight)
    assert source.fetch() == folder and source.identity() != RandomModel("BertForSequenceClassification").identity()


@pytest.mark.parametrize("architecture", ["NoSuchModel", "AutoConfig", "json.JSONDecoder", "no.such.Model"])
def test_what_is_no_model_is_refused(architecture):
    with pytest.raises(
        ConfigError, match=f"model.sources.architecture: '{architecture}', allowed: a model of transfor"
    ):
        RandomModel(architecture).fetch()


@pytest.mark.parametrize("kind", ["image_classification", "audio_classification", "ctc", "rating"])
def test_a_kind_is_tried_out_without_a_download(kind):
    parts = assemble.check(composed([f"variant=kinds/{kind}", "data.limit=64", "machine.device=cpu"]))
    assert parts.objective.kind == kind and len(parts.rows.train) == 64
