"""What a model makes of a text does not depend on the texts beside it in a batch."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from tests.classifiers import classifier
from tests.composing import composed
from tests.trainer.model.model_zoo import FAMILIES, TEXTS, make
from trainer.errors import ConfigError
from trainer.model import backbone as models
from trainer.runs import assemble

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORATORY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def parts_of(tmp_path):
    """The parts of a run of a model on `TEXTS`, with further overrides."""
    path = tmp_path / "texts.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *[[text, number % 2] for number, text in enumerate(TEXTS)]])
    files = [f"task.source.train_path={path}", f"task.source.validation_path={path}", "task.metrics=[accuracy]"]

    def made(model: Path, *overrides: str) -> assemble.RunContext:
        return assemble.check(composed(["model=folder", f"model.path={model}", "task=file", *files, *overrides]))

    return made


def difference(parts: assemble.RunContext) -> float:
    """Largest one between a text's outputs in a batch of all texts and by itself, over the largest output."""
    model, pad = assemble.load(parts).eval(), parts.objective.pad(parts.source)
    rows = next(iter(parts.rows.report.values()))

    def outputs(*places: int) -> torch.Tensor:
        batch = dict(pad([rows[place] for place in places]))
        del batch["labels"]
        return model(**batch).logits.detach().float()

    together, alone = outputs(*range(len(rows))), torch.cat([outputs(place) for place in range(len(rows))])
    return float((together - alone).abs().max() / alone.abs().max())


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_batches_of_one_and_of_all_give_the_same_whatever_side_the_tokenizer_pads(family, side, parts_of, tmp_path):
    parts = parts_of(make(tmp_path / "model", family, {"padding_side": side}), "variant=head")
    assert difference(parts) < 1e-5


@pytest.mark.parametrize(
    ("family", "side", "becomes"),
    [
        ("Bert", "left", "right"),
        ("GPT2", "left", "right"),
        ("XLNet", "right", "left"),
        ("Bert", "right", "right"),
        ("XLNet", "left", "left"),
        ("Llama", "left", "left"),  # whose positions are relative
    ],
)
def test_the_tokenizers_side_is_kept_where_it_is_right_and_a_change_is_said(
    family, side, becomes, parts_of, tmp_path, caplog
):
    caplog.set_level("INFO")
    parts = parts_of(make(tmp_path / "model", family, {"padding_side": side}), "variant=head")
    for _ in range(2):  # the second run of a process finds what the first one found
        caplog.clear()
        assemble.load(parts)
        assert parts.tokenizer.padding_side == becomes
        assert (f"padding is on the {becomes}" in caplog.text) == (side != becomes)


def test_half_precision_hides_nothing(parts_of, tmp_path):
    folder = make(tmp_path / "model", "Bert", {"padding_side": "left"})
    assemble.load(parts_of(folder, "variant=head", "model.dtype=bfloat16"))
    assert models.tokenizer(folder, classifier()).padding_side == "right"


def test_a_mask_reaches_the_model_though_the_tokenizer_does_not_name_it(parts_of, tmp_path):
    folder = make(tmp_path / "model", "Bert", {"model_input_names": ["input_ids"]})
    parts = parts_of(folder, "variant=head")
    assert list(parts.rows.train[0]) == ["attention_mask", "input_ids", "labels"] and difference(parts) < 1e-5


@pytest.mark.parametrize("family", ["GPT2", "Llama"])
def test_a_model_that_looks_for_another_padding_token_is_refused(family, parts_of, tmp_path):
    parts = parts_of(make(tmp_path / "model", family, pad_token_id=7), "variant=head")
    with pytest.raises(ConfigError, match=r"^model: its config has token 7 for padding \(pad_token_id\) and its token"):
        assemble.load(parts)


@pytest.mark.parametrize("family", ["GPT2", "Llama"])
@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning"])
def test_words_in_front_that_padding_parts_from_the_text_are_refused(method, family, parts_of, tmp_path):
    prompt = ["variant=peft", f"variant.method={method}", "+variant.options.num_virtual_tokens=4"]
    parts = parts_of(make(tmp_path / "model", family), *prompt, "variant.targets=null")
    with pytest.raises(ConfigError, match=r"^variant: padding changes a text's outputs"):
        assemble.load(parts)


def test_a_model_that_can_not_take_a_batch_is_refused_in_one_line(parts_of, tmp_path):
    folder = make(tmp_path / "model", "T5")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"decoder_start_token_id": 0,', ""))
    parts = parts_of(folder, "variant=head")
    with pytest.raises(
        ConfigError, match=r"^model: it can't take two texts of the task in one batch: AttributeError: "
    ):
        assemble.load(parts)


def test_memory_that_runs_out_is_no_fault_of_the_model(parts_of, tmp_path, monkeypatch):
    def fail(*_: object) -> float:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    parts = parts_of(make(tmp_path / "model", "Bert"), "variant=head")
    monkeypatch.setattr(assemble.padding, "_change", fail)
    with pytest.raises(RuntimeError, match=r"^DefaultCPUAllocator"):
        assemble.load(parts)


def test_nothing_is_drawn_and_no_module_is_left_in_another_mode(parts_of, tmp_path, monkeypatch):
    parts = parts_of(make(tmp_path / "model", "Bert", {"padding_side": "left"}), "variant=lora")

    def state() -> tuple[list[bool], torch.Tensor]:
        return [module.training for module in assemble.load(parts).modules()], torch.get_rng_state()

    checked = state()
    monkeypatch.setattr(assemble.padding, "settle", lambda *_: 0.0)
    unchecked = state()
    assert checked[0] == unchecked[0] and torch.equal(checked[1], unchecked[1])


def test_a_model_without_a_mask_trains_on_texts_of_one_length(carry_out, tmp_path, caplog):
    caplog.set_level("INFO")
    folder = make(tmp_path / "model", "FNet")
    record = carry_out(f"model.path={folder}", "data.max_length=16", "train.max_steps=2", "variant=head")
    assert record.status == "done" and record.time.tokens_per_second > 0
    assert "the model takes no attention mask, so all texts are padded to 16 tokens" in caplog.text
