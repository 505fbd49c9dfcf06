"""Texts as tokens: what the tokenizer says, kept once for all runs and processes."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from tests.classifiers import classifier
from trainer.data import tokens as module
from trainer.data.tokens import tokens
from trainer.model.backbone import tokenizer

TEXTS = ["the film", "a very fine plot", "", "dull", "the very very very lovely film"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORATORY_CACHE", str(tmp_path / "cache"))


def as_lists(found) -> dict[str, list[list[int]]]:
    return {name: [column[row] for row in range(len(column))] for name, column in found.columns.items()}


@pytest.mark.parametrize("texts", [[TEXTS], [TEXTS, TEXTS[::-1]]], ids=["one text", "pairs"])
def test_rows_are_what_the_tokenizer_gives_cut_at_the_length(texts, tiny_model, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 2)
    found = tokens(texts, tiny_model, classifier(), 5)
    assert as_lists(found) == dict(tokenizer(tiny_model, classifier())(*texts, truncation=True, max_length=5))
    whole = tokenizer(tiny_model, classifier())(*texts)["input_ids"]
    assert found.cut.tolist() == [len(ids) > 5 for ids in whole]
    assert found.columns["input_ids"].lengths.tolist() == [min(5, len(ids)) for ids in whole]


def test_the_same_texts_are_tokenised_once_and_mapped_from_one_place(tiny_model, monkeypatch):
    first = tokens([TEXTS], tiny_model, classifier(), 8)
    monkeypatch.setattr(module, "_encode", lambda *_: pytest.fail("tokenised again"))
    second = tokens([TEXTS], tiny_model, classifier(), 8)
    assert as_lists(second) == as_lists(first)
    assert isinstance(second.columns["input_ids"].numbers, np.memmap)


def test_another_text_length_or_tokenizer_is_another_entry(tiny_model, tmp_path):
    cache = tmp_path / "cache" / "tokens"
    other = shutil.copytree(tiny_model, tmp_path / "other")
    config = other / "tokenizer_config.json"
    config.write_text(config.read_text().replace("{", '{"note": 1,', 1))
    for count, (texts, folder, length) in enumerate(
        [
            ([TEXTS], tiny_model, 8),
            ([TEXTS], tiny_model, 7),
            ([TEXTS[:-1]], tiny_model, 8),
            ([["the", " film"], ["", "dull"]], tiny_model, 8),
            ([["the ", "film"], ["", "dull"]], tiny_model, 8),
            ([TEXTS], other, 8),
        ],
        start=1,
    ):
        tokens(texts, folder, classifier(), length)
        assert len(list(cache.iterdir())) == count


def test_weights_beside_the_tokenizer_do_not_matter(tiny_model, tmp_path):
    tokens([TEXTS], tiny_model, classifier(), 8)
    other = shutil.copytree(tiny_model, tmp_path / "other")
    (other / "model.safetensors").write_bytes(b"other weights")
    tokens([TEXTS], other, classifier(), 8)
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 1
