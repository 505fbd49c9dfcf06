"""What a run is a function of, and the hash that names it.

A run's identity is a set of leaves: dotted names and their values. A leaf that has the default of the schema or of its
class is left out, so that a new option with a default renames no run, and a class is called by its kind, so that it can
be moved (see `trainer.class_source`). Where a run is carried out, what it logs and how often it saves is no part.

Version 1 hashed every leaf, defaults and class paths included; see `trainer.identity_v1`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainer import class_source, identity_v1

VERSION = 2

# The parts of a config that a run is a function of.
PARTS = ("seed", "variant", "task", "model", "data", "optim", "train")


@dataclass(frozen=True)
class Identity:
    """settings: every leaf of those parts, at its default or not, nulls included; what tables show. leaves: those that
    name the run. earlier: the name that version 1 gave the run, None where it had none for it."""

    settings: dict[str, Any]
    leaves: dict[str, Any]
    run_id: str
    earlier: str | None


def identify(parts: Mapping[str, Any], content: Mapping[str, Any], defaults: Mapping[str, Any]) -> Identity:
    """The identity of the run with these parts of a config.

    content: fingerprints of the user's own files by field, which stand in for their paths. defaults: of the schema's
    fields, by their dotted names.
    """
    settings = {name: canonical(value) for name, value in flatten(parts) if not _is_path(name)}
    files = {name: canonical(value) for name, value in flatten(content) if value is not None}
    targets = {name.removesuffix("._target_"): str(value) for name, value in settings.items() if _is_class(name)}
    kinds = {node: class_source.kind(target) for node, target in targets.items()}
    known = {name: canonical(value) for name, value in defaults.items()} | {
        f"{node}.{field}": canonical(value)
        for node, target in targets.items()
        for field, value in class_source.defaults(target).items()
    }
    leaves = reduced(settings, kinds, known) | _orders(parts["variant"]) | files
    before = identity_v1.leaves(settings, kinds, known)
    return Identity(settings | files, leaves, run_id(leaves), None if before is None else run_id(before | files))


def _orders(variant: Mapping[str, Any]) -> dict[str, Any]:
    """The order of names in each mapping among a variant's settings: of several patterns the first that fits counts."""
    return {
        f"variant.{name}.*": list(value)
        for name, value in variant.items()
        if isinstance(value, Mapping) and "_target_" not in value and len(value) > 1
    }


def reduced(settings: Mapping[str, Any], kinds: Mapping[str, str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves that name a run: those of its settings that differ from their defaults, and the kinds of classes.

    kinds: what stands for the class of each node, by the node's name. defaults: by the field's name; a field without
    one is left out where it is null.
    """
    found: dict[str, Any] = {"identity_version": VERSION}
    for name, value in settings.items():
        if _is_class(name):
            found[name] = kinds[name.removesuffix("._target_")]
        elif not _same(value, defaults.get(name)):
            found[name] = value
    return found


def run_id(leaves: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that name the run with these leaves."""
    text = json.dumps(leaves, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a tree of mappings as `("a.b.c", value)`; lists are leaves, empty mappings vanish."""
    for name, value in tree.items():
        if type(value) not in _PLAIN and isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


_PLAIN = (str, int, float, bool, list, type(None))  # told from mappings at once


def canonical(value: Any) -> Any:
    """One spelling for one value: 16.0 and 16 are the same alpha, and a tuple is a list."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    return value


def _same(value: Any, default: Any) -> bool:
    """Equality that tells 1 from true."""
    return type(value) is type(default) and value == default


def _is_class(name: str) -> bool:
    return name.endswith("._target_")


def _is_path(name: str) -> bool:
    """Whether a leaf says where the user's files lie; their content is in the identity in its place."""
    return name.startswith(("task.", "model.")) and name.endswith((".path", "_path"))
