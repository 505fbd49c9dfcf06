"""Tokenizes texts once, keeps the tokens in the user's cache, and maps them into the memory of every process.

A split is stored as a few flat files: for each of the tokenizer's outputs the integers of all rows one after another,
and the end of each row. The folder's name is a hash over everything that determines them: the texts, the tokenizer's
files, the length at which texts are truncated, and the versions of the packages.

A text may spell a special token, as a log with `</s>` does. It is split as ordinary text, and gets only the special
tokens that every text gets. A model without an attention mask reads its padding, so its rows are padded here to one
length: a row's output then does not depend on the other rows of its batch.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.ragged import Ragged
from trainer.data.sources import cache
from trainer.model.architecture import Architecture
from trainer.model.backbone import tokenizer

_ENDS, _CUT, _LETTERS = "ends", "cut", "letters"  # files; all others are the tokenizer's outputs
_RULES = 2  # increase it when the same texts yield other tokens than before
_CHUNK = 10_000  # texts that are in memory as lists of integers


@dataclass(frozen=True)
class Tokens:
    """One split: the tokenizer's outputs by name, and for each row whether its text was truncated (`cut`).

    letters: for each row 1 if its text spells a special token and was split as ordinary text, 2 if the tokenizer can't
    do so, else 0.
    """

    columns: dict[str, Ragged]
    cut: np.ndarray
    letters: np.ndarray


def tokens(texts: Sequence[Sequence[str]], folder: Path, architecture: Architecture, max_length: int) -> Tokens:
    """Tokenizes `texts`, one list or two lists for pairs, with the tokenizer in `folder`.

    Texts of more than `max_length` tokens are truncated.
    """

    def build(target: Path) -> None:
        _write(target, texts, tokenizer(folder, architecture), max_length)

    cached = cache.entry(f"tokens/{_key(texts, folder, architecture, max_length)}", build)
    files = {path.stem: np.load(path, mmap_mode="r") for path in sorted(cached.iterdir())}
    ends, cut, letters = (files.pop(name) for name in (_ENDS, _CUT, _LETTERS))
    return Tokens({name: Ragged(numbers, ends) for name, numbers in files.items()}, cut, letters)


def _write(target: Path, texts: Sequence[Sequence[str]], encode: Any, max_length: int) -> None:
    chunks: dict[str, list[np.ndarray]] = {}
    lengths: list[int] = []
    cut: list[bool] = []
    letters: list[int] = []
    for start in range(0, len(texts[0]), _CHUNK):
        chunk = [list(column[start : start + _CHUNK]) for column in texts]
        columns = _encode(chunk, encode, max_length, cut, letters)
        for name, rows in columns.items():
            chunks.setdefault(name, []).append(np.fromiter(itertools.chain.from_iterable(rows), np.int32))
        lengths += map(len, columns["input_ids"])
    for name, arrays in chunks.items():
        numbers = np.concatenate(arrays)
        small = numbers.astype(np.int8)  # enough for attention masks and token types
        np.save(target / name, small if np.array_equal(small, numbers) else numbers)
    np.save(target / _ENDS, np.cumsum(lengths, dtype=np.int64))
    np.save(target / _CUT, np.asarray(cut, dtype=bool))
    np.save(target / _LETTERS, np.asarray(letters, dtype=np.int8))


def _encode(
    texts: Sequence[list[str]], encode: Any, max_length: int, cut: list[bool], letters: list[int]
) -> dict[str, list[Sequence[int]]]:
    """Returns the tokenizer's outputs, and appends to `cut` and `letters` the values that `Tokens` describes."""
    whole = {"truncation": False, "verbose": False}
    columns: dict[str, Any] = {name: list(rows) for name, rows in encode(*texts, **whole).items()}

    def encode_again(indices: np.ndarray, **options: Any) -> None:
        if len(indices):
            outputs = encode(*[[column[index] for index in indices] for column in texts], **options)
            for name, rows in outputs.items():
                for index, row in zip(indices, rows, strict=True):
                    columns[name][index] = row

    usual = special_tokens(encode, encode(*[[""] for _ in texts], **whole)["input_ids"])[0]
    spelled = special_tokens(encode, columns["input_ids"]) != usual
    states = spelled.astype(np.int8)
    indices = np.flatnonzero(spelled)
    encode_again(indices, split_special_tokens=True, **whole)
    states[indices] += special_tokens(encode, [columns["input_ids"][index] for index in indices]) != usual
    letters += states.tolist()
    long = np.asarray([len(ids) > max_length for ids in columns["input_ids"]])
    cut += long.tolist()
    encode_again(np.flatnonzero(long & spelled), truncation=True, max_length=max_length, split_special_tokens=True)
    encode_again(np.flatnonzero(long & ~spelled), truncation=True, max_length=max_length)
    if "attention_mask" not in encode.model_input_names:
        columns = dict(encode.pad(columns, padding="max_length", max_length=max_length))
    return columns


def special_tokens(encode: Any, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Counts the special tokens of each row, shape (rows,); the token for unknown words does not count as special."""
    named = {role: token for role, token in encode.special_tokens_map.items() if role != "unk_token"}
    numbers = set(encode.all_special_ids) | {
        number for number, token in encode.added_tokens_decoder.items() if token.special
    }
    if encode.unk_token not in named.values():
        numbers.discard(encode.unk_token_id)
    flat = np.fromiter(itertools.chain.from_iterable(rows), np.int64)
    before = np.concatenate([[0], np.cumsum(np.isin(flat, list(numbers)))])
    lengths = np.fromiter(map(len, rows), np.int64)
    ends = np.cumsum(lengths)
    return before[ends] - before[ends - lengths]


def _key(texts: Sequence[Sequence[str]], folder: Path, architecture: Architecture, max_length: int) -> str:
    outputs = tokenizer(folder, architecture).model_input_names
    content = hashlib.sha256(f"{_RULES} {tokenizer_hash(folder)} {outputs} {max_length} {len(texts)}".encode())
    for text in (text for column in texts for text in column):
        encoded = text.encode("utf-8", "surrogatepass")
        content.update(len(encoded).to_bytes(8, "little"))
        content.update(encoded)
    return content.hexdigest()[:32]


@functools.cache
def tokenizer_hash(folder: Path) -> str:
    """Hashes what determines a tokenizer's output: its files and the packages that read them."""
    content = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix not in _WEIGHTS:
            content.update(f"{path.name} {path.stat().st_size} ".encode())
            content.update(path.read_bytes())
    for package in ("tokenizers", "transformers"):
        content.update(f"{package} {importlib.metadata.version(package)} ".encode())
    return content.hexdigest()


_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".ot")
