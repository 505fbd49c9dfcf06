"""Folders of models that are damaged, or want more than to be read: one line of ours, and nothing is run or asked."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.classifiers import classifier, pristine
from trainer.data.sources.folder import FolderModel
from trainer.errors import ConfigError
from trainer.model import backbone as models
from trainer.model.foreign import reading

WEIGHTS = "model.safetensors"


def edited(name: str, **changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes))

    return edit


def replaced(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def weights(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        name = next(name for name in found if name.endswith("query.weight"))
        save_file(found | {name: change(found[name])}, folder / WEIGHTS, metadata={"format": "pt"})

    return edit


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("was-run",)


def pickled(content: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        torch.save(content, folder / "pytorch_model.bin")

    return edit


def pipe(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return edit


def read(folder: Path) -> None:
    FolderModel(str(folder)).fetch()
    models.skeleton(folder, classifier(2))
    models.tokenizer(folder, classifier())
    pristine(folder, 2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edited("config.json", hidden_size="x"), "model: its config.json: can't be read: "),
        (edited("config.json", hidden_size=None), "model: its config.json: can't be read: "),
        (edited("config.json", num_attention_heads=0), "model: its config.json: can't be read: "),
        (edited("config.json", hidden_act="foo"), "model: its config.json: can't be read: "),
        (edited("config.json", hidden_dropout_prob=2), "model: its config.json: can't be read: "),
        (
            edited("config.json", model_type="vit"),
            "model: vit, for which transformers has no Auto",
        ),
        (
            edited("config.json", hidden_size=32),
            "model: bert.embeddings.LayerNorm.bias has another size in its checkpoint",
        ),
        (
            edited("config.json", model_type="foo", auto_map={"AutoConfig": "c.C"}),
            "model: its config.json: needs its own code (auto_map), which is never run; allowed: ",
        ),
        (replaced("config.json", b"[" * 100_000), "model.path: "),
        (replaced("tokenizer.json", b""), "model: its tokenizer: can't be read: "),
        (replaced("tokenizer.json", b"{}"), "model: its tokenizer: can't be read: "),
        (replaced("tokenizer.json", bytes(range(256))), "model: its tokenizer: can't be read: "),
        (replaced("tokenizer_config.json", b"null"), "model: its tokenizer: can't be read: "),
        (replaced("tokenizer_config.json", b'{"pad_token": 5}'), "model: its tokenizer: can't be read: "),
        (edited("tokenizer_config.json", model_max_length="x"), "model: its tokenizer: can't be read: "),
        (
            weights(lambda weight: torch.zeros(5, 5)),
            "model: bert.encoder.layer.0.attention.self.query.weight has another size in its checkpoint than",
        ),
        (weights(lambda weight: weight * torch.nan), "model: its weights: bert.encoder.layer.0.attention.self.query"),
        (pickled({"a": Harmful()}), "model: its weights: a pickle with more than tensors could run code"),
        (pickled(torch.nn.Linear(2, 2)), "model: its weights: a pickle with more than tensors could run code"),
        (pickled(5), "model: its weights: can't be read: "),
        (pipe("config.json"), "model.path: "),
        (pipe("tokenizer.json"), "model.path: "),
        (pipe(WEIGHTS), "model.path: "),
    ],
)
def test_a_damaged_folder_is_one_line(tiny_model, tmp_path, monkeypatch, damage, message):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    damage(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asks on the terminal"))
    with pytest.raises(ConfigError) as caught:
        read(folder)
    line = str(caught.value)
    assert line.startswith(message)
    assert "\n" not in line and "trust_remote_code" not in line and "weights_only" not in line
    assert not (tmp_path / "was-run").exists()


def test_memory_that_runs_out_is_no_damaged_file():
    with pytest.raises(MemoryError), reading("its weights"):
        raise MemoryError
    with pytest.raises(RuntimeError, match="out of memory"), reading("its weights"):
        raise RuntimeError("CUDA out of memory")


def test_a_known_model_that_names_code_of_its_own_is_said(tiny_model, tmp_path, caplog):
    """transformers takes its own class of the type: another model than the checkpoint's, perhaps."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    path = folder / "config.json"
    kept = json.loads(path.read_text())
    named = {"AutoModelForSequenceClassification": "own.Mine", "AutoModel": "own.Other"}
    path.write_text(json.dumps(kept | {"auto_map": named}))
    architecture = classifier(2)
    models.model_config(folder, architecture)
    assert "names code of its own (own.Mine), which is never run; transformers' own Bert" in caplog.text
    caplog.clear()
    path.write_text(json.dumps(kept | {"auto_map": {"AutoModel": "own.Other"}}))
    models.model_config.cache_clear()
    models.model_config(folder, architecture)
    assert "of its own" not in caplog.text
