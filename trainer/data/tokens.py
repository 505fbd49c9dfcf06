"""Texts as tokens: made once, kept in the user's cache, and mapped into memory by every run and process.

A split is a few flat files: for each of the tokenizer's outputs the numbers of all rows behind one another, and
where each row ends. The name of the folder is a hash of all that decides them: the texts, the tokenizer's files,
the length at which texts are cut, and the versions of the packages.

The letters of a special token in a text, as `</s>` in a log, are letters: such a text is split as if there were no
special tokens, and gets just those that every text gets. A model that takes no attention mask sees its padding, so its
rows are padded here, all to one length: then a row's output does not depend on the rows beside it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.ragged import Ragged
from trainer.data.sources import cache
from trainer.model.architecture import Architecture
from trainer.model.backbone import tokenizer

_ENDS, _CUT, _LETTERS = "ends", "cut", "letters"  # files; all others are the tokenizer's outputs
_RULES = 2  # one more wherever the same texts are made into other tokens than before
_AT_ONCE = 10_000  # texts in memory as lists of numbers


@dataclass(frozen=True)
class Tokens:
    """One split: the tokenizer's outputs by name, and for each row whether its text was cut (`cut`).

    letters: 1 where letters of a special token were split like any others, 2 where the tokenizer can't do so, else 0.
    """

    columns: dict[str, Ragged]
    cut: np.ndarray
    letters: np.ndarray


def tokens(texts: Sequence[Sequence[str]], folder: Path, architecture: Architecture, max_length: int) -> Tokens:
    """The tokens of `texts`, one list of them or two of pairs, with the tokenizer in `folder`.

    Texts of more than `max_length` tokens are cut.
    """

    def build(place: Path) -> None:
        _write(place, texts, tokenizer(folder, architecture), max_length)

    place = cache.entry(f"tokens/{_key(texts, folder, architecture, max_length)}", build)
    files = {path.stem: np.load(path, mmap_mode="r") for path in sorted(place.iterdir())}
    ends, cut, letters = (files.pop(name) for name in (_ENDS, _CUT, _LETTERS))
    return Tokens({name: Ragged(numbers, ends) for name, numbers in files.items()}, cut, letters)


def _write(place: Path, texts: Sequence[Sequence[str]], encode: Any, max_length: int) -> None:
    parts: dict[str, list[np.ndarray]] = {}
    lengths: list[int] = []
    cut: list[bool] = []
    letters: list[int] = []
    for start in range(0, len(texts[0]), _AT_ONCE):
        some = [list(column[start : start + _AT_ONCE]) for column in texts]
        columns = _encode(some, encode, max_length, cut, letters)
        for name, rows in columns.items():
            parts.setdefault(name, []).append(np.fromiter(itertools.chain.from_iterable(rows), np.int32))
        lengths += map(len, columns["input_ids"])
    for name, found in parts.items():
        numbers = np.concatenate(found)
        small = numbers.astype(np.int8)  # masks and types of tokens
        np.save(place / name, small if np.array_equal(small, numbers) else numbers)
    np.save(place / _ENDS, np.cumsum(lengths, dtype=np.int64))
    np.save(place / _CUT, np.asarray(cut, dtype=bool))
    np.save(place / _LETTERS, np.asarray(letters, dtype=np.int8))


def _encode(
    texts: Sequence[list[str]], encode: Any, max_length: int, cut: list[bool], letters: list[int]
) -> dict[str, list[Sequence[int]]]:
    """The tokenizer's outputs; which texts were cut goes to `cut`, what `Tokens.letters` says to `letters`."""
    whole = {"truncation": False, "verbose": False}
    columns: dict[str, Any] = {name: list(rows) for name, rows in encode(*texts, **whole).items()}

    def again(places: np.ndarray, **options: Any) -> None:
        if len(places):
            some = encode(*[[column[place] for place in places] for column in texts], **options)
            for name, rows in some.items():
                for place, row in zip(places, rows, strict=True):
                    columns[name][place] = row

    usual = special_tokens(encode, encode(*[[""] for _ in texts], **whole)["input_ids"])[0]
    marked = special_tokens(encode, columns["input_ids"]) != usual
    found = marked.astype(np.int8)
    places = np.flatnonzero(marked)
    again(places, split_special_tokens=True, **whole)
    found[places] += special_tokens(encode, [columns["input_ids"][place] for place in places]) != usual
    letters += found.tolist()
    long = np.asarray([len(ids) > max_length for ids in columns["input_ids"]])
    cut += long.tolist()
    again(np.flatnonzero(long & marked), truncation=True, max_length=max_length, split_special_tokens=True)
    again(np.flatnonzero(long & ~marked), truncation=True, max_length=max_length)
    if "attention_mask" not in encode.model_input_names:
        columns = dict(encode.pad(columns, padding="max_length", max_length=max_length))
    return columns


def special_tokens(encode: Any, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """How many special tokens each of `rows` has; the one for unknown words, which texts may well have, is none."""
    named = {role: token for role, token in encode.special_tokens_map.items() if role != "unk_token"}
    numbers = set(encode.all_special_ids) | {
        number for number, token in encode.added_tokens_decoder.items() if token.special
    }
    if encode.unk_token not in named.values():
        numbers.discard(encode.unk_token_id)
    flat = np.fromiter(itertools.chain.from_iterable(rows), np.int64)
    upto = np.concatenate([[0], np.cumsum(np.isin(flat, list(numbers)))])
    lengths = np.fromiter(map(len, rows), np.int64)
    ends = np.cumsum(lengths)
    return upto[ends] - upto[ends - lengths]


def _key(texts: Sequence[Sequence[str]], folder: Path, architecture: Architecture, max_length: int) -> str:
    outputs = tokenizer(folder, architecture).model_input_names
    content = hashlib.sha256(f"{_RULES} {tokenizer_hash(folder)} {outputs} {max_length} {len(texts)}".encode())
    for text in _all(texts):
        encoded = text.encode("utf-8", "surrogatepass")
        content.update(len(encoded).to_bytes(8, "little"))
        content.update(encoded)
    return content.hexdigest()[:32]


def _all(texts: Sequence[Sequence[str]]) -> Iterable[str]:
    return (text for column in texts for text in column)


@functools.cache
def tokenizer_hash(folder: Path) -> str:
    """What decides a tokenizer's numbers: its files, and the packages that read them."""
    content = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix not in _WEIGHTS:
            content.update(f"{path.name} {path.stat().st_size} ".encode())
            content.update(path.read_bytes())
    for package in ("tokenizers", "transformers"):
        content.update(f"{package} {importlib.metadata.version(package)} ".encode())
    return content.hexdigest()


_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".ot")
