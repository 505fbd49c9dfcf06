"""Checks a model's folder by its files alone, before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path

# Only the files that determine what an encoder computes: no README, no ONNX export.
ENCODER_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
_VOCABULARIES = (  # one of these is enough for a tokenizer
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "bpe.codes",
)
# Of images and sounds. The second one may hold the first one's content beside that of a tokenizer; transformers then
# reads it there, even where a model has both.
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_TOKENIZER_EXTRAS = (
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "dict.txt",
    "chat_template.jinja",
)


def weights(names: Collection[str]) -> list[str]:
    """Returns the weight files among a folder's names, the index first: safetensors, or else torch's format.

    A repository often has the same weights in several formats; these are the files that transformers would load.
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
    """Returns the files that determine what a model computes, among all names of its folder or repository."""
    names = set(names)
    wanted = {"config.json", *_PROCESSORS, *_VOCABULARIES, *_TOKENIZER_EXTRAS} & names
    return sorted(wanted) + weights(names)


def unpinned(names: Collection[str]) -> str:
    """Describes what of a model has no file among `names`: config, weights, or what reads its inputs; empty for none.

    An index of weights is no weights, and a vocabulary alone is no tokenizer: another file says how it is read.
    """
    words = not set(_VOCABULARIES).isdisjoint(names)
    parts = {
        "config.json": "config.json" in names,
        "the weights": any(not name.endswith(".index.json") for name in weights(names)),
        f"the tokenizer (or {_PROCESSORS[0]})": words or not set(_PROCESSORS).isdisjoint(names),
        "tokenizer_config.json": not words or "tokenizer_config.json" in names,
        "merges.txt": "vocab.json" not in names or not {"tokenizer.json", "merges.txt"}.isdisjoint(names),
    }
    return ", ".join(part for part, found in parts.items() if not found)


def problem(folder: Path) -> str | None:
    """Describes why the model in `folder` can't be loaded; None if its files look loadable."""
    try:
        names = {path.name for path in folder.iterdir() if path.exists()}  # a dangling link is a missing file
    except OSError as error:
        return f"{error.strerror or error}"
    for name in needed(names):
        if not (folder / name).is_file():  # reading a pipe may never end
            return f"{name} is not a regular file"
    listing = ", ".join(sorted(names)[:12]) or "nothing"
    if "config.json" not in names:
        return f"config.json is missing (found: {listing})"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"config.json can't be read ({error})"
    if not isinstance(config, dict) or "model_type" not in config:
        return "config.json has no model_type, so it isn't a transformers model"
    files = weights(names)
    if not files:
        return f"the weights are missing: model.safetensors or pytorch_model.bin (found: {listing})"
    if {*_VOCABULARIES, *_PROCESSORS}.isdisjoint(names):
        vocabularies = ", ".join(_VOCABULARIES)
        return f"the tokenizer is missing: one of {vocabularies} (for texts), or {_PROCESSORS[0]} (found: {listing})"
    if files[0].endswith(".index.json"):
        try:
            shards = set(json.loads((folder / files[0]).read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return f"{files[0]} can't be read ({error!r})"
        if not shards or not all(isinstance(name, str) for name in shards):
            return f"{files[0]} names no files of weights"
        if shards - names:
            return f"{files[0]} names files that are missing: {', '.join(sorted(shards - names))}"
    for name in files:
        if name.endswith(".safetensors"):
            trouble = _truncated(folder / name)
            if trouble:
                return f"{name} is {trouble}"
    return None


def _truncated(path: Path) -> str | None:
    """Describes a fault of a safetensors file, given its header; None for none.

    The format is 8 bytes with the header's length, the header as JSON with offsets, and the data.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            return f"truncated or not a safetensors file ({size} bytes)"
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return "not a safetensors file: its header can't be read"
    expected = 8 + length + max(ends, default=0)
    return None if size >= expected else f"truncated: {size} bytes of {expected}"
