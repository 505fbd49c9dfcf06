"""Classes of sounds: WAV files of every form become samples, no row's outputs depend on its batch, what is refused."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests.composing import composed
from tests.conftest import folder_of
from tests.trainer.objectives import other_kinds, recordings
from tests.trainer.objectives.other_kinds import carried_out
from trainer.data import sounds
from trainer.data.sources.sounds import Sounds
from trainer.errors import ConfigError
from trainer.loop.batches import Collator
from trainer.loop.network import Network
from trainer.model import backbone as models
from trainer.runs import assemble, dry_run
from trainer.runs.finished import opened
from trainer.sweeps.plan import plan

KIND = "audio_classification"


@pytest.fixture(scope="module")
def wave(tmp_path_factory):
    return recordings.model(tmp_path_factory.mktemp("wave"))


@pytest.fixture
def told(wave, tmp_path):
    return other_kinds.teller(KIND, wave, tmp_path)


@pytest.fixture
def checked(told):
    return other_kinds.checker(told)


def batch_of(parts, count=4):
    rows = [dict(parts.rows.train[place]) for place in range(count)]
    return Collator(parts.objective.pad(parts.source), parts.objective.weigh)(rows)


# -- samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_every_form_of_a_number_is_between_minus_one_and_one(dtype):
    wanted = np.array([-1.0, -0.5, 0.0, 0.5, 0.9])
    if dtype == np.uint8:
        content = recordings.wav((wanted * 127 + 128) / 255, dtype=dtype)
    else:
        content = recordings.wav(wanted, dtype=dtype)
    rate, found = sounds.decoded(content)
    assert rate == recordings.RATE and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=0.02 if dtype == np.uint8 else 1e-4)


def test_channels_are_averaged():
    left, right = np.array([0.5, 0.25]), np.array([0.0, -0.25])
    _, found = sounds.decoded(recordings.wav(np.stack([left, right], axis=1), dtype=np.float32))
    np.testing.assert_allclose(found, [0.25, 0.0])


@pytest.mark.parametrize("rate", [1000, 3000, 4410, 16000])
def test_another_rate_becomes_the_models_and_a_tone_stays_that_tone(rate):
    times = np.arange(rate) / rate
    tone = 0.5 * np.sin(2 * np.pi * 50 * times)
    found = sounds.resampled(recordings.wav(tone, rate), 2000)
    assert len(found) == sounds.length(rate, rate, 2000) == 2000 and found.dtype == np.float32
    expected = 0.5 * np.sin(2 * np.pi * 50 * np.arange(2000) / 2000)
    np.testing.assert_allclose(found[200:-200], expected[200:-200], atol=2e-3)


# -- a row's outputs ------------------------------------------------------------------------------


def test_the_loss_is_transformers_own_and_the_inputs_are_the_extractors(checked):
    parts = checked()
    model = assemble.load(parts).eval()
    batch = batch_of(parts, 3)
    samples = [sounds.resampled(parts.rows.train[place]["audio"], recordings.RATE) for place in range(3)]
    own = parts.tokenizer(samples, sampling_rate=recordings.RATE, padding=True, return_tensors="pt")
    assert torch.equal(batch.inputs["input_values"], own["input_values"])
    assert torch.equal(batch.inputs["attention_mask"], own["attention_mask"]) and batch.weight == 3
    found = parts.objective.loss(Network(model, parts.source, torch.device("cpu"), False), batch)
    with torch.no_grad():
        expected = float(model(**own, labels=batch.labels).loss)
    assert float(found.mean.detach()) == pytest.approx(expected, abs=1e-6)
    assert int(parts.objective.units(batch)) == sum(map(len, samples))
    assert parts.objective.size(batch) == 3 * max(map(len, samples))


@pytest.mark.parametrize("family", list(recordings.FAMILIES))
def test_a_family_trains_and_a_rows_outputs_do_not_depend_on_its_batch(family, told, tmp_path):
    record = carried_out(told("train.max_steps=2", model=recordings.model(tmp_path / "model", family)))
    assert record.status == "done" and 0 < record.params.head < 200
    with opened(folder_of(record, tmp_path)) as made:
        rows = made.context.rows.report["validation"]
        assert family in ("Whisper", "AST") or len(set(rows.lengths)) > 1
        together = made.predictions(rows)
        made._loop.evaluator._size = 1
        np.testing.assert_allclose(together.outputs, made.predictions(rows).outputs, rtol=1e-4, atol=1e-5)


def test_a_model_that_reads_padding_is_given_none(told, checked, tmp_path):
    """A group norm over all places of a row sees what is behind a mask, as that of wav2vec2-base."""
    model = recordings.model(tmp_path / "model", "Hubert")
    parts = checked(model=model)
    loaded = assemble.load(parts).eval()
    assert parts.tokenizer.return_attention_mask is False
    batch = batch_of(parts)
    assert batch.inputs["input_values"].isnan().any() and "attention_mask" not in batch.inputs
    with torch.no_grad():
        found = parts.objective.outputs_of(loaded, batch.inputs)
        for row in range(4):
            samples = sounds.resampled(parts.rows.train[row]["audio"], recordings.RATE)
            own = parts.tokenizer([samples], sampling_rate=recordings.RATE, return_tensors="pt")["input_values"]
            torch.testing.assert_close(found[row], loaded(input_values=own).logits[0])
    lengths = [parts.rows.train.lengths[place] for place in range(4)]
    assert parts.objective.size(batch) == int(parts.objective.units(batch)) == sum(lengths)
    # Padded and masked it would be another number.
    padded = batch.inputs["input_values"].nan_to_num(0.0)
    mask = ~batch.inputs["input_values"].isnan()
    shortest = int(np.argmin(lengths))
    with torch.no_grad():
        other = loaded(input_values=padded, attention_mask=mask.long()).logits[shortest]
    assert (other - found[shortest]).abs().max() > 1e-3


def test_the_largest_batch_of_a_dry_run_is_that_of_the_run(told, tmp_path):
    everything = told("train.group_by_length=false", model=recordings.model(tmp_path / "model", "Hubert"))
    record = carried_out(everything)
    assert dry_run.predict(plan(composed(everything))).activations == record.memory.activations


def test_frames_of_padding_are_no_places_of_a_row(checked):
    parts = checked()
    assemble.load(parts)
    batch = batch_of(parts)
    places = parts.objective.places(batch, parts.source)
    frames = [(size - 10) // 5 + 1 for size in parts.rows.train.lengths[:4]]
    frames = [(size - 3) // 2 + 1 for size in frames]
    assert places.sum(1).tolist() == frames and places.shape == (4, max(frames))


def test_masked_spans_and_left_out_layers_are_drawn_again_after_an_interruption(told, monkeypatch, tmp_path):
    from trainer.loop.loop import Loop

    model = recordings.model(
        tmp_path / "model", layerdrop=0.3, apply_spec_augment=True, mask_time_prob=0.3, mask_time_length=3
    )
    settings = ["variant.dropout=0.2", "machine.save_every=2"]
    straight = carried_out(told(*settings, "study=straight", model=model))
    step = Loop.make_step

    def dies(self, index, batches):
        if index == 5:
            raise KeyboardInterrupt
        step(self, index, batches)

    monkeypatch.setattr(Loop, "make_step", dies)
    with pytest.raises(KeyboardInterrupt):
        carried_out(told(*settings, "study=cut", model=model))
    monkeypatch.undo()
    np.random.seed(99)
    resumed = carried_out(told(*settings, "study=cut", model=model))
    one, two = (load_file(folder_of(record, tmp_path) / "adapter/state.safetensors") for record in (straight, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_what_a_window_has_no_room_for_is_counted_as_cut(checked, tmp_path):
    parts = checked(model=recordings.model(tmp_path / "model", "Whisper"))
    assert parts.rows.truncated == 0 and parts.max_length == recordings.RATE
    draw = random.Random(0)
    long = tmp_path / "sounds" / "low" / "1.wav"
    long.write_bytes(recordings.wav(recordings.tone(draw, False, 1.5)))
    source = f"task.source.train_path={shutil.copytree(tmp_path / 'sounds', tmp_path / 'again')}"
    told = other_kinds.overrides(KIND, tmp_path / "model", tmp_path)
    assert assemble.check(composed([*told, source])).rows.truncated == 1


def test_frames_of_a_spectrogram_of_fixed_length_are_counted_and_whole(checked, tmp_path):
    """AST's: frames of 400 samples at 16 kHz, each 160 behind the one before."""
    model = recordings.model(tmp_path / "model", "AST")
    parts = checked(model=model)
    assert parts.max_length == 400 + 95 * 160 and parts.rows.truncated == 0
    batch = batch_of(parts)
    assert batch.inputs["input_values"].shape == (4, 96, 32)
    short = tmp_path / "sounds" / "low" / "1.wav"
    short.write_bytes(recordings.wav(recordings.tone(random.Random(0), False, 0.02)))
    source = f"task.source.train_path={shutil.copytree(tmp_path / 'sounds', tmp_path / 'again')}"
    told = other_kinds.overrides(KIND, model, tmp_path)
    with pytest.raises(ConfigError, match=r"low/1\.wav.* has 320 samples at 16000 Hz, allowed: 400 or more, a frame"):
        assemble.check(composed([*told, source]))
    settings = json.loads((model / "preprocessor_config.json").read_text())
    (model / "preprocessor_config.json").write_text(json.dumps(settings | {"sampling_rate": 8000}))
    models.feature_extractor.cache_clear()
    with pytest.raises(ConfigError, match="sampling_rate 8000 of its ASTFeatureExtractor, allowed: 16000"):
        checked(model=model)


# -- one's own sounds -----------------------------------------------------------------------------


def test_a_folder_and_tables_of_files_or_bytes_give_the_same_sounds(tmp_path):
    folder = recordings.write(tmp_path / "sounds")
    files = sorted(folder.rglob("*.wav"))
    named = pd.DataFrame(
        {"audio": [str(f.relative_to(tmp_path)) for f in files], "label": [f.parent.name for f in files]}
    )
    named.to_csv(tmp_path / "named.csv", index=False)
    named.to_json(tmp_path / "named.jsonl", orient="records", lines=True)
    held = named.assign(audio=[{"bytes": file.read_bytes(), "path": None} for file in files])
    held.to_parquet(tmp_path / "held.parquet")
    sources = [Sounds(str(path)) for path in (folder, *sorted(tmp_path.glob("*.*")))]
    assert len(sources) == 4
    found = [source.load() for source in sources]
    for one in found[1:]:
        assert one.labels == found[0].labels == ("high", "low")
        for split, rows in one.splits.items():
            for name in ("id", "audio", "label"):
                assert rows[name] == found[0].splits[split][name]
    assert len({tuple(source.identity().items()) for source in sources}) == 1


SHORT = recordings.wav(np.zeros(100))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"low/1\.wav is no WAV file that can be read \(ValueError\)"),
        (b"fLaC and more", r"low/1\.wav is no WAV file that can be read"),
        (SHORT[:30], r"low/1\.wav is no WAV file that can be read"),
        (SHORT[:-50], r"low/1\.wav is cut short \(Reached EOF prematurely; finished at 194 bytes, expected 244"),
        (recordings.wav(np.zeros(0)), r"low/1\.wav has no samples; allowed: one or more"),
        (recordings.wav(np.array([0.0, np.nan]), dtype=np.float32), r"low/1\.wav has samples that are not finite"),
        (recordings.wav(np.zeros(100), 100), r"low/1\.wav has 100 samples a second; allowed: 1,000 to 768,000"),
    ],
)
def test_what_is_no_sound_is_named_by_its_file(content, said, tmp_path):
    folder = recordings.write(tmp_path / "sounds")
    (folder / "low" / "1.wav").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^task\.source\.train_path: '.*sounds': {said}"):
        Sounds(str(folder)).load()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train_path": "???"}, r"task\.source\.train_path: not given"),
        ({"train_path": "a", "label": None}, r"task\.source\.label: both are null; allowed: one of label and text"),
        ({"train_path": "a", "text": "said"}, r"task\.source\.label: 'label' and text: 'said'; allowed: one of"),
        ({"train_path": "a", "holdout": 1.0}, r"task\.source\.holdout: 1\.0; allowed"),
    ],
)
def test_settings_of_a_source_that_do_not_fit_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        Sounds(**settings)


# -- what doesn't fit -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["task.metrics=[f1,rmse]"], r"task.metrics: 'rmse' in a (classification of sounds|task)"),
        (["task.kind=image_classification"], r"task: columns file, audio, label for a classification of images"),
        (
            [
                *("variant=peft", "variant.method=prompt_tuning", "+variant.options.num_virtual_tokens=2"),
                "variant.targets=null",
            ],
            r"num_virtual_tokens: 2 in a classification of sounds, which has no tokens",
        ),
    ],
)
def test_what_a_run_can_not_do_is_refused(more, said, checked):
    with pytest.raises(ConfigError, match=said):
        checked(*more)


def test_a_model_of_texts_is_refused(checked, tiny_model):
    with pytest.raises(ConfigError, match="bert, for which transformers has no AutoModelForAudioClassification"):
        checked(model=tiny_model)


def test_a_sound_without_a_frame_is_named(checked, tmp_path):
    folder = recordings.write(tmp_path / "sounds")
    (folder / "low" / "1.wav").write_bytes(recordings.wav(np.zeros(19)))
    with pytest.raises(ConfigError, match=r"row \d+ of \w+ \('low/1.wav'\) has 19 samples at 2000 Hz, .* 0 frames"):
        assemble.check(
            composed(
                [
                    *other_kinds.overrides(KIND, recordings.model(tmp_path / "model"), tmp_path),
                    f"task.source.train_path={folder}",
                ]
            )
        )


def test_a_sound_shorter_than_a_masked_span_is_named(checked, tmp_path):
    model = recordings.model(tmp_path / "model", apply_spec_augment=True, mask_time_length=20)
    with pytest.raises(ConfigError, match=r"of train \(.*the model makes \d+ frames; allowed: 20 or more, a span that"):
        checked(model=model)


@pytest.mark.parametrize(
    ("family", "settings", "said"),
    [
        ("Hubert", {}, "machine.fsdp: true with a model that reads padding, allowed: false"),
        (
            "Wav2Vec2",
            {"layerdrop": 0.1},
            "machine.fsdp: true with layerdrop 0.1 in the model's config.json, allowed: 0",
        ),
    ],
)
def test_a_model_whose_passes_differ_between_processes_is_not_sharded(family, settings, said, checked, tmp_path):
    model = recordings.model(tmp_path / "model", family, **settings)
    with pytest.raises(ConfigError, match=said):
        assemble.load(checked("machine.fsdp=true", model=model))


def test_an_extractor_of_another_window_than_the_models_is_refused(checked, tmp_path):
    model = recordings.model(tmp_path / "model", "Whisper", max_source_positions=30)
    with pytest.raises(ConfigError, match=r"model: it can't take sounds as its preprocessor_config\.json makes them"):
        assemble.load(checked(model=model))


def test_an_extractor_of_neither_form_is_refused(checked, tmp_path):
    model = recordings.model(tmp_path / "model")
    path = model / "preprocessor_config.json"
    path.write_text(json.dumps({"feature_extractor_type": "SeamlessM4TFeatureExtractor", "sampling_rate": 2000}))
    with pytest.raises(ConfigError, match="makes neither samples nor a window of fixed length"):
        checked(model=model)
