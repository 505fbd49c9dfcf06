"""Version 1 of the identity: the names that it gave to runs, and their translation into the present version.

Version 1 hashed every leaf of a config, defaults and dotted class paths included. Runs that it named are still found
and share a row with newer ones. identity_v1.json lists its classes and its schema and must never be edited. A class
that has moved is found by its bare name. A config that sets a newer option has no name in version 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_KNOWN = json.loads((Path(__file__).parent / "identity_v1.json").read_text(encoding="utf-8"))
_GIVEN = "<must be given>"  # marks a required field in the list of defaults

# Fields with defaults, by the path of the class, and those of the schema. The optimizer may have any fields.
CLASSES: dict[str, dict[str, Any]] = _KNOWN["classes"]
SCHEMA: dict[str, Any] = _KNOWN["schema"]

# Groups whose fields are all listed, and the part of them that may have any.
CLOSED = ("data.", "optim.", "train.")
OPEN = ("optim.optimizer.",)

# Options that were true or null in version 1 and are true or false now.
SWITCHES = ("train.recompute", "variant.frozen_a")

_PATHS = {path.rpartition(".")[2]: path for path in CLASSES}


def leaves(settings: Mapping[str, Any], kinds: Mapping[str, str], defaults: Mapping[str, Any]) -> dict[str, Any] | None:
    """The leaves that version 1 hashed for these settings; None if it could not name the run.

    kinds: by the name of the node whose class they represent. defaults: present ones, by the field's name.
    """
    hashed: dict[str, Any] = {}
    for name, value in settings.items():
        node, _, field = name.rpartition(".")
        if field == "_target_":
            hashed[name] = _PATHS.get(kinds[node], value)
        elif value is None or (name in SWITCHES and value is False):
            continue
        elif _knew(name, kinds):
            hashed[name] = value
        elif name not in defaults or value != defaults[name]:
            return None
    return hashed


def read(hashed: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Settings, kinds and defaults, as `trainer.identity.reduced` takes them, from the leaves that version 1 hashed."""
    targets = {name.removesuffix("._target_"): path for name, path in hashed.items() if name.endswith("._target_")}
    kinds = {node: path.rpartition(".")[2] if path in CLASSES else path for node, path in targets.items()}
    defaults = dict(SCHEMA)
    absent: dict[str, Any] = {}
    for node, path in targets.items():
        for field, default in CLASSES.get(path, {}).items():
            name = f"{node}.{field}"
            defaults[name] = default
            # Version 1 omitted nulls. Leaves of a dictionary have longer names, and an empty one has no leaf.
            if default not in (None, _GIVEN, {}) and name not in hashed and not name.endswith("path"):
                absent[name] = None
    return {**hashed, **absent}, kinds, defaults


def _knew(name: str, kinds: Mapping[str, str]) -> bool:
    """Whether version 1 had the field of a leaf."""
    for node, kind in kinds.items():
        if name.startswith(f"{node}."):
            fields = CLASSES.get(_PATHS.get(kind, ""))
            return fields is None or name.removeprefix(f"{node}.").partition(".")[0] in fields
    return name in SCHEMA or name.startswith(OPEN) or not name.startswith(CLOSED)
