"""A run's identity: the settings that its result depends on, and the hash of them that names the run.

An identity is a set of leaves, dotted names with values. Leaves with the default of the schema or of their class are
left out, so that a new option with a default renames no run. A class is represented by its kind, so that it can be
moved (see `trainer.class_source`). Where a run is carried out, what it logs and how often it saves is not included.

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

# The parts of a config that affect the result.
PARTS = ("seed", "variant", "task", "model", "data", "optim", "train")


@dataclass(frozen=True)
class Identity:
    """settings: every leaf of `PARTS`, defaults and nulls included, for tables. leaves: those that name the run.
    earlier: the run's name by version 1; None if version 1 could not name it."""

    settings: dict[str, Any]
    leaves: dict[str, Any]
    run_id: str
    earlier: str | None


def identify(parts: Mapping[str, Any], content: Mapping[str, Any], defaults: Mapping[str, Any]) -> Identity:
    """The identity of the run with these parts of a config.

    content: fingerprints of the user's files by field; they replace the paths. defaults: of the schema's fields, by
    dotted name.
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
    earlier = identity_v1.leaves(settings, kinds, known)
    return Identity(settings | files, leaves, run_id(leaves), None if earlier is None else run_id(earlier | files))


def _orders(variant: Mapping[str, Any]) -> dict[str, Any]:
    """The order of names in each mapping of a variant's settings, because the first pattern that matches counts."""
    return {
        f"variant.{name}.*": list(value)
        for name, value in variant.items()
        if isinstance(value, Mapping) and "_target_" not in value and len(value) > 1
    }


def reduced(settings: Mapping[str, Any], kinds: Mapping[str, str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves that name a run: settings that differ from their defaults, and the kinds of classes.

    kinds: by the name of the node whose class they represent. defaults: by the field's name. A field without a default
    is left out if it is null.
    """
    leaves: dict[str, Any] = {"identity_version": VERSION}
    for name, value in settings.items():
        if _is_class(name):
            leaves[name] = kinds[name.removesuffix("._target_")]
        elif not _same(value, defaults.get(name)):
            leaves[name] = value
    return leaves


def run_id(leaves: Mapping[str, Any]) -> str:
    """The run's name: twelve hexadecimal digits."""
    text = json.dumps(leaves, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a tree of mappings as `("a.b.c", value)`; lists are leaves, empty mappings vanish."""
    for name, value in tree.items():
        if type(value) not in _PLAIN and isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


_PLAIN = (str, int, float, bool, list, type(None))  # a fast test that a value is not a mapping


def canonical(value: Any) -> Any:
    """Equal values in one spelling: 16.0 becomes 16, a tuple becomes a list."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    return value


def _same(value: Any, default: Any) -> bool:
    """Equality that distinguishes 1 from true."""
    return type(value) is type(default) and value == default


def _is_class(name: str) -> bool:
    return name.endswith("._target_")


def _is_path(name: str) -> bool:
    """Whether a leaf is the path of a user's file; the identity has the hash of the content instead."""
    return name.startswith(("task.", "model.")) and name.endswith((".path", "_path"))
