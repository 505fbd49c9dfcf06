"""What a model's folder must hold, told from the files alone, before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path

# the files that decide what an encoder does, and no more: README, ONNX exports and the like stay out
ENCODER_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
_VOCABULARIES = (  # any one of these makes a tokenizer
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "bpe.codes",
)
_PROCESSOR = "preprocessor_config.json"  # of images and sounds
_TOKENIZER_EXTRAS = (
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "dict.txt",
    "chat_template.jinja",
)


def weights(names: Collection[str]) -> list[str]:
    """The weight files among a folder's names, index first: safetensors if there are, else torch's own.

    A repository often holds the same weights several times; this picks what transformers would load.
    """
    for index, whole, prefix, ending in (
        ("model.safetensors.index.json", "model.safetensors", "model-", ".safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model.bin", "pytorch_model-", ".bin"),
    ):
        if whole in names:
            return [whole]
        if index in names:
            return [index, *sorted(n for n in names if n.startswith(prefix) and n.endswith(ending))]
    return []


def needed(names: Iterable[str]) -> list[str]:
    """The files that decide what a model does, among all names of its folder or repository."""
    names = set(names)
    wanted = {"config.json", _PROCESSOR, *_VOCABULARIES, *_TOKENIZER_EXTRAS} & names
    return sorted(wanted) + weights(names)


def problem(folder: Path) -> str | None:
    """Why `folder` isn't a model that can be loaded, in a few words; None if it looks like one."""
    try:
        names = {path.name for path in folder.iterdir() if path.exists()}  # a dangling link is a missing file
    except OSError as error:
        return f"{error.strerror or error}"
    for name in needed(names):
        if not (folder / name).is_file():  # a pipe may never come to an end
            return f"{name} is no regular file"
    listing = ", ".join(sorted(names)[:12]) or "nothing"
    if "config.json" not in names:
        return f"there is no config.json (there is: {listing})"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"config.json can't be read ({error})"
    if not isinstance(config, dict) or "model_type" not in config:
        return "config.json has no model_type, so it isn't a transformers model"
    files = weights(names)
    if not files:
        return f"there are no weights: model.safetensors or pytorch_model.bin (there is: {listing})"
    if not names & {*_VOCABULARIES, _PROCESSOR}:
        vocabularies = ", ".join(_VOCABULARIES)
        return f"there is no tokenizer: one of {vocabularies} (for texts), nor {_PROCESSOR} (there is: {listing})"
    if files[0].endswith(".index.json"):
        try:
            shards = set(json.loads((folder / files[0]).read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return f"{files[0]} can't be read ({error!r})"
        if not shards or not all(isinstance(name, str) for name in shards):
            return f"{files[0]} names no files of weights"
        if shards - names:
            return f"{files[0]} names files that aren't there: {', '.join(sorted(shards - names))}"
    for name in files:
        if name.endswith(".safetensors"):
            trouble = _truncated(folder / name)
            if trouble:
                return f"{name} is {trouble}"
    return None


def _truncated(path: Path) -> str | None:
    """What is wrong with a safetensors file, from its header: 8 bytes of length, JSON with offsets, data."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            return f"truncated or no safetensors file ({size} bytes)"
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return "no safetensors file: its header can't be read"
    expected = 8 + length + max(ends, default=0)
    return None if size >= expected else f"truncated: {size} bytes of {expected}"
