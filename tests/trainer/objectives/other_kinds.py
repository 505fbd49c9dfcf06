"""Runs of the kinds of task that have tables of their own columns: tiny models with random weights, and such rows."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import decoders

from tests.composing import composed
from tests.trainer.model.model_zoo import (
    BART_SIZE,
    BERT,
    DECODER,
    ENCODER,
    FAMILIES,
    GPT2,
    LLAMA,
    POSITIONS,
    ROBERTA,
    _tokenizer,
)
from tests.trainer.objectives import language, pictures, raters, recordings

WORDS = ["a", "warm", "film", "with", "bright", "cast", "dull", "plot", "slow", "hollow", "ending", "pale", "hero"]
NAMES = {"Ann": "PER", "Bob": "PER", "Rome": "LOC", "Oslo": "LOC"}

# As `FAMILIES`.
MORE: dict[str, tuple[dict[str, str], dict[str, Any], int | None]] = {
    "Marian": (
        ROBERTA,
        BART_SIZE | {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "forced_eos_token_id": None},
        POSITIONS,
    ),
    "ModernBert": (
        BERT,
        ENCODER | {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "global_attn_every_n_layers": 2},
        POSITIONS,
    ),
    "Qwen3": (GPT2, DECODER | {"bos_token_id": 0, "eos_token_id": 0, "head_dim": 8}, POSITIONS),
    "Gemma": (LLAMA, DECODER | {"head_dim": 8}, POSITIONS),
}

# By kind: transformers' class, the family of the tiny model, and what a run is told of its rows.
KINDS: dict[str, tuple[str, str, list[str]]] = {
    "token_classification": (
        "AutoModelForTokenClassification",
        "Bert",
        ["task.source.tokens=tokens", "task.source.tags=tags", "task.metrics=[f1,precision,recall,accuracy]"],
    ),
    "extractive_qa": (
        "AutoModelForQuestionAnswering",
        "Bert",
        [f"task.source.{name}={name}" for name in ("context", "question", "answers")]
        + ["task.metrics=[f1,exact_match]", "task.stride=8"],
    ),
    "seq2seq": (
        "AutoModelForSeq2SeqLM",
        "Bart",
        [
            *("task.source.source=source", "task.source.target=target"),
            *("task.metrics=[token_f1,rouge_l,chrf,loss]", "task.max_new_tokens=8"),
        ],
    ),
    "image_classification": ("AutoModelForImageClassification", "ViT", ["task.metrics=[accuracy,f1_macro]"]),
    "audio_classification": ("AutoModelForAudioClassification", "Wav2Vec2", ["task.metrics=[accuracy,f1_macro]"]),
    "rating": ("AutoModel", "TwoTower", ["task.metrics=[rmse,mae,ndcg_10,recall_10]"]),
    "ctc": ("AutoModelForCTC", "Wav2Vec2", ["task.metrics=[wer,cer,loss]"]),
}
# The task of a kind whose rows are files.
FILES = {"image_classification": "images", "audio_classification": "sounds", "ctc": "speech", "rating": "ratings"}


def rows(kind: str) -> list[dict[str, Any]]:
    """Rows that a tiny model can learn something from."""
    draw = random.Random(0)
    return [_ROWS[kind](draw) for _ in range(24)]


def _sentence(draw: random.Random) -> dict[str, Any]:
    words, tags = [], []
    for _ in range(draw.randint(2, 6)):
        if draw.random() < 0.5:
            words.append(draw.choice(WORDS))
            tags.append("O")
            continue
        name = draw.choice(list(NAMES))
        length = draw.randint(1, 2)
        words += [name] * length
        tags += [f"{'B' if place == 0 else 'I'}-{NAMES[name]}" for place in range(length)]
    return {"tokens": words, "tags": tags}


def _question(draw: random.Random) -> dict[str, Any]:
    """Where is somebody? A name in the context, which a third of the contexts lack; some take more than one window."""
    words = draw.choices(WORDS, k=draw.randint(2, 16))
    name, place = draw.choice(list(NAMES)), draw.randint(0, len(words))
    if draw.random() < 0.33:
        return {"context": " ".join(words), "question": "who", "answers": {"text": [], "start": []}}
    context = " ".join([*words[:place], name, *words[place:]])
    return {"context": context, "question": "who", "answers": {"text": [name], "start": [context.index(name)]}}


def _translation(draw: random.Random) -> dict[str, Any]:
    """The names of a sentence."""
    words = draw.choices([*WORDS, *NAMES], k=draw.randint(2, 8))
    names = [word for word in words if word in NAMES]
    return {"source": " ".join(words), "target": " ".join(names) or "nobody"}


_ROWS = {"token_classification": _sentence, "extractive_qa": _question, "seq2seq": _translation}


def model(kind: str, folder: Path, family: str | None = None, **settings: Any) -> Path:
    """A tiny model for a kind, with weights that tell tokens apart."""
    auto, usual, _ = KINDS[kind]
    family = family or usual
    if kind == "image_classification":
        return pictures.model(folder, family, **settings)
    if kind == "audio_classification":
        return recordings.model(folder, family, **settings)
    if kind == "ctc":
        return recordings.listener(folder, family, **settings)
    if kind == "rating":
        return raters.model(folder, **settings)
    roles, own, _ = (FAMILIES | MORE)[family]
    words = copy.deepcopy(_tokenizer(id(roles), tuple(roles.items())))
    words.backend_tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(0)
    # The head has no dropout of its own, which model.dropout leaves and two processes draw differently.
    wide = {"vocab_size": len(words), "classifier_dropout": 0.0}
    wide |= {name: 0.2 for name in ("initializer_range", "init_std") if name in _fields(family)}
    config = getattr(transformers, f"{family}Config")(**(own | wide | settings))
    getattr(transformers, auto).from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def _fields(family: str) -> dict[str, Any]:
    found: dict[str, Any] = getattr(transformers, f"{family}Config")().to_dict()
    return found


def overrides(kind: str, model: Path, folder: Path) -> list[str]:
    """Of a run of eight steps with the model, without its rows."""
    return [
        *("model=folder", f"model.path={model}", "model.name=tiny"),
        *(f"task={FILES.get(kind, 'file')}", f"task.kind={kind}", *KINDS[kind][2]),
        *("task.source.holdout=0.3", "train.batch_size=4", "train.max_steps=8", "optim.lr=1e-2", "data.max_length=32"),
        *(f"runs_dir={folder / 'runs'}", "study=test", "machine.progress=false", "machine.device=cpu"),
    ]


def table(kind: str, folder: Path) -> str:
    """The override that names a table of the kind's rows, which is written into `folder`."""
    if kind == "image_classification":
        return f"task.source.train_path={pictures.write(folder / 'images')}"
    if kind == "audio_classification":
        return f"task.source.train_path={recordings.write(folder / 'sounds')}"
    if kind == "rating":
        return f"task.source.train_path={raters.write(folder / 'ratings.csv')}"
    if kind == "ctc":
        return f"task.source.train_path={recordings.spoken(folder / 'speech')}"
    return f"task.source.train_path={language.write(folder / f'{kind}.jsonl', rows(kind))}"


def teller(kind: str, model: Path, folder: Path) -> Callable[..., list[str]]:
    """A function that returns the overrides of a run on the kind's rows, by default with this model."""

    def told(*more: str, model: Path = model) -> list[str]:
        return [*overrides(kind, model, folder), table(kind, folder), *more]

    return told


def checker(told: Callable[..., list[str]]) -> Callable[..., Any]:
    """A function that returns the parts of a run before any weight is loaded; its arguments are those of `told`."""
    from trainer.runs import assemble

    return lambda *more, **options: assemble.check(composed(told(*more, **options)))


def carried_out(everything: list[str]) -> Any:
    """The record of the run with these overrides."""
    from trainer.runs.run import run
    from trainer.sweeps.plan import plan

    return run(plan(composed(everything)), everything)
