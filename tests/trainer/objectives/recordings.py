"""WAV files of two classes, low and high tones, and tiny models with random weights for them."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from scipy.io import wavfile

RATE = 2000  # samples a second of the tiny models
CONVOLUTIONS = {"conv_dim": (8, 8), "conv_kernel": (10, 3), "conv_stride": (5, 2)}  # of 25 samples the first frame
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
WAVE = (
    SMALL
    | CONVOLUTIONS
    | {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "initializer_range": 0.2}
    | {"classifier_proj_size": 8, "feat_extract_norm": "layer", "feat_proj_dropout": 0.1}
    # Nothing that is drawn but dropout, which model.dropout sets.
    | {"layerdrop": 0.0, "apply_spec_augment": False, "final_dropout": 0.0}
)

FAMILIES: dict[str, tuple[type, dict[str, Any]]] = {
    "Wav2Vec2": (transformers.Wav2Vec2Config, WAVE),
    "Hubert": (transformers.HubertConfig, WAVE | {"feat_extract_norm": "group"}),
    "WavLM": (transformers.WavLMConfig, WAVE),
    "Whisper": (
        transformers.WhisperConfig,
        {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "num_mel_bins": 8}
        | {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "classifier_proj_size": 8}
        | {"max_source_positions": 25, "init_std": 0.2, "vocab_size": 8, "pad_token_id": 0, "bos_token_id": 1}
        | {"eos_token_id": 1, "decoder_start_token_id": 1},
    ),
    "AST": (
        transformers.ASTConfig,
        SMALL | {"max_length": 96, "num_mel_bins": 32, "initializer_range": 0.2, "hidden_dropout_prob": 0.1},
    ),
}


def model(
    folder: Path, family: str = "Wav2Vec2", auto: str = "AutoModelForAudioClassification", **settings: Any
) -> Path:
    """The family's model in `folder`, as `save_pretrained` writes it, and the feature extractor of its sounds."""
    config, own = FAMILIES[family]
    torch.manual_seed(0)
    getattr(transformers, auto).from_config(config(**(own | settings))).save_pretrained(folder)
    if family == "Whisper":
        window = {"feature_size": 8, "sampling_rate": RATE, "chunk_length": 1, "n_fft": 256, "hop_length": 40}
        transformers.WhisperFeatureExtractor(**window).save_pretrained(folder)
    elif family == "AST":
        own = {"max_length": 96, "num_mel_bins": 32}  # 0.975 seconds at its own rate
        transformers.ASTFeatureExtractor(**own).save_pretrained(folder)
    else:
        transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE).save_pretrained(folder)
    return folder


def tone(draw: random.Random, high: bool, seconds: float, rate: int = RATE) -> np.ndarray:
    """Samples in −1…1: a tone of 100 or 500 Hz with a bit of noise."""
    times = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(draw.randrange(2**32)).standard_normal(len(times)) / 20
    return 0.5 * np.sin(2 * np.pi * (500 if high else 100) * times + draw.random()) + noise


def wav(samples: np.ndarray, rate: int = RATE, dtype: Any = np.int16) -> bytes:
    """An encoded file of samples in −1…1, (samples,) or (samples, channels)."""
    file = io.BytesIO()
    if np.issubdtype(dtype, np.integer):
        samples = (samples.clip(-1, 1) * np.iinfo(dtype).max).astype(dtype)
    wavfile.write(file, rate, samples.astype(dtype))
    return file.getvalue()


def write(folder: Path, count: int = 24) -> Path:
    """A folder for each class, with sounds of different lengths, rates and numbers of channels."""
    draw = random.Random(0)
    for number in range(count):
        high = number % 2 == 0
        rate = 4000 if number % 3 == 0 else RATE
        samples = tone(draw, high, 0.1 + 0.02 * (number % 5), rate)
        if number % 4 == 0:
            samples = np.stack([samples, 0.5 * samples], axis=1)
        path = folder / ("high" if high else "low") / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(wav(samples, rate))
    return folder


LETTERS = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "a": 5, "b": 6, "c": 7}
TONES = {"a": 100, "b": 400, "c": 800}  # Hz


def listener(folder: Path, family: str = "Wav2Vec2", **settings: Any) -> Path:
    """A model for transcripts in `folder`, and the tokenizer of its letters."""
    letters = {"vocab_size": len(LETTERS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model(folder, family, "AutoModelForCTC", **(letters | settings))
    (folder / "vocab.json").write_text(json.dumps(LETTERS))
    transformers.Wav2Vec2CTCTokenizer(folder / "vocab.json").save_pretrained(folder)
    return folder


def said(draw: random.Random, text: str, seconds: float = 0.03) -> np.ndarray:
    """Samples in −1…1: a tone for each letter, silence between words and behind each letter, with a bit of noise."""
    parts = []
    for letter in text:
        times = np.arange(round(seconds * RATE)) / RATE
        parts.append(0.5 * np.sin(2 * np.pi * TONES.get(letter, 0) * times + draw.random()))
        parts.append(np.zeros(len(times) // 2))
    samples = np.concatenate(parts)
    return samples + np.random.default_rng(draw.randrange(2**32)).standard_normal(len(samples)) / 50


def spoken(folder: Path, count: int = 24) -> Path:
    """A table of files and of what is said in them, one to three words each."""
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        text = " ".join("".join(draw.choices("abc", k=draw.randint(1, 3))) for _ in range(draw.randint(1, 3)))
        (folder / f"{number}.wav").write_bytes(wav(said(draw, text)))
        rows.append({"audio": f"{number}.wav", "text": text})
    path = folder / "speech.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(folder: Path, **values: Any) -> Path:
    """Changes settings of a model's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder
