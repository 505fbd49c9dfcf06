"""Transcripts of sounds: the loss is transformers' own, errors are jiwer's, and what can't be written is refused."""

from __future__ import annotations

import json
import random

import jiwer
import numpy as np
import pytest
import torch
import transformers

from tests.composing import composed
from tests.conftest import folder_of
from tests.trainer.objectives import other_kinds, recordings
from tests.trainer.objectives.other_kinds import carried_out
from trainer.data import sounds
from trainer.errors import ConfigError
from trainer.loop.batches import Collator
from trainer.loop.network import Network
from trainer.runs import assemble
from trainer.runs.finished import opened
from weights import cli

KIND = "ctc"


@pytest.fixture(scope="module")
def listener(tmp_path_factory):
    return recordings.listener(tmp_path_factory.mktemp("listener"))


@pytest.fixture
def told(listener, tmp_path):
    return other_kinds.teller(KIND, listener, tmp_path)


@pytest.fixture
def checked(told):
    return other_kinds.checker(told)


@pytest.fixture
def with_rows(listener, tmp_path):
    """The parts of a run with other rows, of (text, seconds a letter)."""

    def check(*rows, model=listener):
        draw = random.Random(0)
        path = recordings.spoken(tmp_path / "speech")
        lines = path.read_text().splitlines()
        for number, (text, seconds) in enumerate(rows):
            (path.parent / f"{number}.wav").write_bytes(recordings.wav(recordings.said(draw, "abc", seconds)))
            lines[number] = json.dumps({"audio": f"{number}.wav", "text": text})
        path.write_text("\n".join(lines))
        told = [*other_kinds.overrides(KIND, model, tmp_path), f"task.source.train_path={path}"]
        return assemble.check(composed([*told, f"task.source.validation_path={path}"]))

    return check


def batch_of(parts, count=4, weights=None):
    rows = [dict(parts.rows.train[place]) for place in range(count)]
    for row, weight in zip(rows, weights or [1] * count, strict=True):
        row["weight"] = weight
    return Collator(parts.objective.pad(parts.source), parts.objective.weigh)(rows)


# -- the loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["Wav2Vec2", "Hubert"])
def test_the_loss_is_transformers_own_of_each_row_alone(family, checked, tmp_path):
    parts = checked(model=recordings.listener(tmp_path / "model", family))
    model = assemble.load(parts).eval()
    batch = batch_of(parts)
    found = parts.objective.loss(Network(model, parts.source, torch.device("cpu"), False), batch)
    expected, letters = 0.0, 0
    for place in range(4):
        row = parts.rows.train[place]
        samples = sounds.resampled(row["audio"], recordings.RATE)
        own = parts.tokenizer.feature_extractor([samples], sampling_rate=recordings.RATE, return_tensors="pt")
        with torch.no_grad():  # transformers' default reduction is the sum
            expected += float(
                model(input_values=own["input_values"], labels=torch.tensor([row["labels"]], dtype=torch.long)).loss
            )
        letters += len(row["labels"])
    assert batch.weight == letters and float(found.sum.detach()) == pytest.approx(expected, rel=1e-5)


def test_a_row_that_does_not_count_has_no_part_in_loss_and_gradient(checked):
    parts = checked()
    model = assemble.load(parts).eval()
    network = Network(model, parts.source, torch.device("cpu"), False)
    gradients = []
    for batch in (batch_of(parts, 2, [1, 0]), batch_of(parts, 1)):
        model.zero_grad()
        loss = parts.objective.loss(network, batch)
        (loss.sum / batch.weight).backward()
        gradients.append((loss.mean.detach(), model.lm_head.weight.grad.clone()))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


# -- what is heard --------------------------------------------------------------------------------


def test_error_rates_are_jiwers(told, tmp_path):
    record = carried_out(told("train.max_steps=80", "variant=full", "optim.lr=1e-2", "train.checkpoint=last"))
    with opened(folder_of(record, tmp_path)) as made:
        found = made.predictions(made.context.rows.report["validation"])
        right = [made.context.objective.content.splits["validation"]["text"][row] for row in range(len(found))]
        order = made.context.rows.report["validation"].examples
    assert [right[row] for row in order] == list(found.reference)
    assert record.metrics["wer"] == pytest.approx(jiwer.wer(list(found.reference), list(found.prediction)))
    assert record.metrics["cer"] == pytest.approx(jiwer.cer(list(found.reference), list(found.prediction)))
    assert record.metric.higher_is_better is False and len(set(found.prediction)) > 1


@pytest.mark.parametrize("family", ["Hubert", "WavLM"])
def test_a_family_trains_and_hears_the_same_in_every_batch(family, told, tmp_path):
    record = carried_out(told("train.max_steps=2", model=recordings.listener(tmp_path / "model", family)))
    with opened(folder_of(record, tmp_path)) as made:
        rows = made.context.rows.report["validation"]
        together = made.predictions(rows)
        made._loop.evaluator._size = 1
        alone = made.predictions(rows)
    assert list(together.prediction) == list(alone.prediction)
    np.testing.assert_allclose(together.stats["nll"], alone.stats["nll"], rtol=1e-4)


def test_a_model_without_letters_gets_a_head_and_one_with_letters_keeps_it(checked, told, listener, tmp_path):
    model = recordings.listener(tmp_path / "model")
    config = transformers.AutoConfig.from_pretrained(model)
    transformers.Wav2Vec2Model(config).save_pretrained(model)
    for folder, stays in ((model, False), (listener, True)):
        one, two = (assemble.load(checked(f"seed={seed}", model=folder)).lm_head.weight for seed in (0, 1))
        assert torch.equal(one, two) == stays
    with pytest.raises(ConfigError, match=r"model\.keep_head: true, allowed: null; the task has no classes"):
        assemble.load(checked("model.keep_head=true"))


def test_an_exported_model_is_transformers_own_with_its_processor(told, tmp_path):
    record = carried_out(told())
    folder = folder_of(record, tmp_path)
    assert cli.main(["export", str(folder), "--to", "merged"]) == 0
    made = folder / "export" / "merged"
    processor = transformers.AutoProcessor.from_pretrained(made)
    model = transformers.AutoModelForCTC.from_pretrained(made).eval()
    with opened(folder) as finished:
        rows = finished.context.rows.report["validation"]
        expected, audio = finished.predictions(rows).prediction, rows[0]["audio"]
    samples = sounds.resampled(audio, recordings.RATE)
    inputs = processor(samples, sampling_rate=recordings.RATE, return_tensors="pt")
    with torch.no_grad():
        heard = processor.batch_decode(model(**inputs).logits.argmax(-1))[0]
    assert " ".join(heard.split()) == expected[0]


def test_a_processor_in_one_file_is_read_too(checked, tmp_path):
    model = recordings.listener(tmp_path / "model")
    whole = transformers.AutoProcessor.from_pretrained(model)
    (model / "preprocessor_config.json").unlink()
    whole.save_pretrained(model)
    assert (model / "processor_config.json").is_file() and not (model / "preprocessor_config.json").exists()
    assert checked(model=model).tokenizer.feature_extractor.sampling_rate == recordings.RATE


# -- what doesn't fit -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "abd xa",
            r"row 1 of train \('0\.wav'\): its transcript has 'd', 'x', which the model's tokenizer has no lett",
        ),
        ("A b", r"its transcript has 'A', which .* letters of its vocabulary, in its case"),
        ("a|b", r"its transcript 'a\|b' is 'a b' with the model's tokenizer; allowed: a text without special tokens"),
        ("<pad>a", r"its transcript '<pad>a' is 'a' with the model's tokenizer"),
        ("", r"column 'text': row 1 is empty; allowed: a text in every row"),
        (" ", r"column 'text': row 1 is empty"),
    ],
)
def test_a_transcript_that_the_tokenizer_can_not_write_is_named(text, said, with_rows):
    with pytest.raises(ConfigError, match=said):
        with_rows((text, 0.03))


@pytest.mark.parametrize(("text", "needed"), [("abc" * 6, 18), ("aaaaaaaaa", 17)])
def test_a_transcript_of_more_letters_than_frames_is_named(text, needed, with_rows):
    made = rf"row 1 of train \('0\.wav'\): the model makes 16 frames of it, and its transcript needs {needed}; allowed"
    with pytest.raises(ConfigError, match=made):
        with_rows((text, 0.019))


def test_a_transcript_of_as_many_letters_as_frames_has_a_finite_loss(with_rows):
    parts = with_rows(("abc" * 5 + "a", 0.019))
    assert parts.rows.train.lengths[0] and len(parts.rows.train[0]["labels"]) == 16
    network = Network(assemble.load(parts).eval(), parts.source, torch.device("cpu"), False)
    assert torch.isfinite(parts.objective.loss(network, batch_of(parts, 1)).sum)


def test_white_space_is_one_space(with_rows):
    assert with_rows(("a \t b\n", 0.03)).rows.train[0]["labels"] == [5, 4, 6]


def test_a_letter_beyond_the_models_outputs_is_named(with_rows, tmp_path):
    model = recordings.listener(tmp_path / "model", vocab_size=7)
    with pytest.raises(ConfigError, match=r"has the letter 'c', number 7, and the model has 7 outputs \(vocab_size"):
        with_rows(("c", 0.03), model=model)


def test_another_blank_than_the_tokenizers_padding_is_refused(checked, tmp_path):
    model = recordings.listener(tmp_path / "model", pad_token_id=1)
    with pytest.raises(ConfigError, match=r"model: its blank is 1 \(pad_token_id .* is 0; allowed: the same number"):
        checked(model=model)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ["task.kind=audio_classification", "task.metrics=[accuracy]"],
            "task: columns file, audio, text for a classification of sounds",
        ),
        (
            ["task.metrics=[accuracy]"],
            r"task\.metrics: 'accuracy' in a transcription of sounds; allowed: wer, cer, loss",
        ),
    ],
)
def test_what_a_run_can_not_do_is_refused(more, said, checked):
    with pytest.raises(ConfigError, match=said):
        checked(*more)


def test_a_folder_of_sounds_has_no_transcripts(tmp_path, listener):
    told = other_kinds.overrides(KIND, listener, tmp_path)
    with pytest.raises(ConfigError, match=r"is a folder; allowed: a table with a column 'text'"):
        assemble.check(composed([*told, f"task.source.train_path={recordings.write(tmp_path / 'sounds')}"]))


def test_a_model_of_windows_is_refused(checked, tmp_path):
    model = recordings.listener(tmp_path / "model")
    transformers.WhisperFeatureExtractor(feature_size=8, sampling_rate=2000, chunk_length=1).save_pretrained(model)
    with pytest.raises(ConfigError, match="wav2vec2, whose WhisperFeatureExtractor makes no samples; allowed: a model"):
        checked(model=model)
