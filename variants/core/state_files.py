"""State on disk: nested dicts and lists of tensors and plain values, without pickle.

A tree is written as two files: `NAME.safetensors` has the tensors, `NAME.json` the structure of the tree with
references to them. If the JSON file exists, both are complete: it is written last, under a temporary name, and renamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

_TENSOR = "__tensor__"
_PAIRS = "__pairs__"
_TUPLE = "__tuple__"
_OUTLINE = "outline"


class CorruptState(ValueError):
    """The files of a state are incomplete or do not fit the model."""


def save(tree: Any, path: Path) -> None:
    """Write `tree` to `path`.safetensors and `path`.json.

    Leaves are tensors, strings, numbers, booleans and None; dict keys are strings or integers.
    """
    tensors: dict[str, torch.Tensor] = {}
    skeleton = _strip(tree, "", tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = path.with_name(path.name + ".safetensors")
    temporary = weights.with_name(f".{weights.name}.tmp")
    save_file(tensors, temporary)
    _sync(temporary)
    os.replace(temporary, weights)
    outline = path.with_name(path.name + ".json")
    temporary = outline.with_name(f".{outline.name}.tmp")
    temporary.write_text(json.dumps(skeleton), encoding="utf-8")
    _sync(temporary)
    os.replace(temporary, outline)


def load(path: Path) -> Any:
    """Return the tree that `save` wrote. Raises `CorruptState` naming the file."""
    outline, weights = path.with_name(path.name + ".json"), path.with_name(path.name + ".safetensors")
    try:
        return _fill(json.loads(outline.read_text(encoding="utf-8")), load_file(weights))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CorruptState(f"{path}: {type(error).__name__}: {error}") from None


def packed(tree: Any) -> dict[str, torch.Tensor]:
    """Return `tree` as tensors by name, for a file that holds nothing else; its structure is one of them, as bytes."""
    tensors: dict[str, torch.Tensor] = {}
    outline = json.dumps(_strip(tree, "", tensors)).encode()
    return {**tensors, _OUTLINE: torch.frombuffer(bytearray(outline), dtype=torch.uint8)}


def unpacked(tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return the tree that `packed` was given."""
    return _fill(json.loads(bytes(tensors[_OUTLINE].tolist())), tensors)


def _strip(tree: Any, key_path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(tree, torch.Tensor):
        tensors[key_path] = tree.detach().to("cpu").contiguous().clone()
        return {_TENSOR: key_path}
    if isinstance(tree, Mapping):
        if all(isinstance(key, str) for key in tree) and not {_TENSOR, _PAIRS, _TUPLE} & tree.keys():
            return {key: _strip(value, f"{key_path}/{key}", tensors) for key, value in tree.items()}
        return {_PAIRS: [[key, _strip(value, f"{key_path}/{key}", tensors)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        items = [_strip(value, f"{key_path}/{i}", tensors) for i, value in enumerate(tree)]
        return {_TUPLE: items} if isinstance(tree, tuple) else items
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(f"{key_path or 'state'}: {type(tree).__name__} can't be saved without pickle")


def _fill(skeleton: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(skeleton, list):
        return [_fill(value, tensors) for value in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    if _TENSOR in skeleton:
        return tensors[skeleton[_TENSOR]]
    if _PAIRS in skeleton:
        return {key: _fill(value, tensors) for key, value in skeleton[_PAIRS]}
    if _TUPLE in skeleton:
        return tuple(_fill(value, tensors) for value in skeleton[_TUPLE])
    return {key: _fill(value, tensors) for key, value in skeleton.items()}


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
