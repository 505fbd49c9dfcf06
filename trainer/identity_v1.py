"""Names that version 1 of the identity gave to runs, and what they stand for in the version of today.

Version 1 hashed every leaf of a config, defaults and dotted class paths included. Runs that it named are still found
and share a row with newer ones. So its classes and its schema are written down beside this file as they were, and never
edited: a class that has moved is found by its name, and a config that sets a later option has no name in version 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_KNOWN = json.loads((Path(__file__).parent / "identity_v1.json").read_text(encoding="utf-8"))
_GIVEN = "<must be given>"  # in the place of a default

# Fields and their defaults by the path of the class, and those of the schema. The optimizer has any fields.
CLASSES: dict[str, dict[str, Any]] = _KNOWN["classes"]
SCHEMA: dict[str, Any] = _KNOWN["schema"]

# Groups that had no other fields than these.
CLOSED = ("data.", "optim.", "train.")
OPEN = ("optim.optimizer.",)

# Options that were true or null then and are true or false now.
SWITCHES = ("train.recompute", "variant.frozen_a")

_PATHS = {path.rpartition(".")[2]: path for path in CLASSES}


def leaves(settings: Mapping[str, Any], kinds: Mapping[str, str], defaults: Mapping[str, Any]) -> dict[str, Any] | None:
    """What version 1 hashed of a run's settings; None for a run that it could not have named.

    kinds: what stands for the class of each node, by the node's name. defaults: those of today, by the field's name.
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        node, _, field = name.rpartition(".")
        if field == "_target_":
            found[name] = _PATHS.get(kinds[node], value)
        elif value is None or (name in SWITCHES and value is False):
            continue
        elif _knew(name, kinds):
            found[name] = value
        elif name not in defaults or value != defaults[name]:
            return None
    return found


def read(found: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Settings, kinds and defaults of a run, as `trainer.identity.reduced` takes them, from what version 1 hashed."""
    targets = {name.removesuffix("._target_"): path for name, path in found.items() if name.endswith("._target_")}
    kinds = {node: path.rpartition(".")[2] if path in CLASSES else path for node, path in targets.items()}
    defaults = dict(SCHEMA)
    absent: dict[str, Any] = {}
    for node, path in targets.items():
        for field, default in CLASSES.get(path, {}).items():
            name = f"{node}.{field}"
            defaults[name] = default
            # Version 1 left out nulls. A dictionary's leaves have longer names, an empty one has none.
            if default not in (None, _GIVEN, {}) and name not in found and not name.endswith("path"):
                absent[name] = None
    return {**found, **absent}, kinds, defaults


def _knew(name: str, kinds: Mapping[str, str]) -> bool:
    """Whether version 1 had the field that a leaf belongs to."""
    for node, kind in kinds.items():
        if name.startswith(f"{node}."):
            fields = CLASSES.get(_PATHS.get(kind, ""))
            return fields is None or name.removeprefix(f"{node}.").partition(".")[0] in fields
    return name in SCHEMA or name.startswith(OPEN) or not name.startswith(CLOSED)
