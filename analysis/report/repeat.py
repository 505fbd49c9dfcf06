"""The overrides that repeat a run of a method from outside of the suite, whose own overrides may not.

Its file in conf/variant lies elsewhere or nowhere (`--config-dir`, `variant._target_=…`), so the method's settings are
given one by one, in place of a file: `~variant ++variant._target_=package.Class ++variant.rank=4 …`. With them go the
settings of optimizer, loop and data that differ from the schema's defaults, for such a file may set these, too.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from trainer.identity import canonical, flatten
from trainer.record import CONFIG, Record

SUITE = ("variants", "trainer")  # the packages of a commit
FILES = Path(__file__).parents[2] / "conf" / "variant"
_GROUPS = ("data.", "optim.", "train.")


def overrides(record: Record, folder: Path | None = None) -> list[str] | None:
    """All overrides that repeat a run; None if those on its command line are enough.

    folder: of the run. Its config.yaml has the order in which a mapping was written, which a record has not.
    """
    is_known = "variant._target_" in record.config
    if not is_known or (not is_foreign(record) and all(map(_has_file, record.overrides))):
        return None
    others = {name: record.config[name] for name in sorted(record.identity) if name in record.config}
    others = {name: value for name, value in others.items() if name.startswith(_GROUPS) or name == "seed"}
    kept = [text for text in record.overrides if not _is_variant(_key(text)) and _key(text) not in others]
    given = [f"++variant.{name}={_text(value)}" for name, value in _variant(record.config, folder).items()]
    return [*kept, "~variant", *given, *(f"++{name}={_text(value)}" for name, value in others.items())]


def is_foreign(record: Record) -> bool:
    """Whether the method's class is outside of the suite's packages, so that no commit contains it."""
    target = record.config.get("variant._target_")
    return isinstance(target, str) and target.removeprefix("loratory.").partition(".")[0] not in SUITE


def _variant(config: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """The method's settings by field, from config.yaml if it agrees with the record.

    From the record alone: what is below a field are the keys of one mapping, with dots in them or not.
    """
    settings = {name.removeprefix("variant."): value for name, value in config.items() if name.startswith("variant.")}
    if folder is not None:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            saved: dict[str, Any] = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))["variant"]
            if {name: canonical(value) for name, value in flatten(saved)} == settings:
                return saved
    fields: dict[str, Any] = {}
    for name, value in settings.items():
        field, _, key = name.partition(".")
        if key:
            fields.setdefault(field, {})[key] = value
        else:
            fields[field] = value
    return fields


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _is_variant(key: str) -> bool:
    return key == "variant" or key.startswith(("variant.", "variant@"))


def _has_file(override: str) -> bool:
    """Whether an override that chooses a variant names an existing file; true for other overrides."""
    key, _, name = override.partition("=")
    return key.lstrip("+") != "variant" or (FILES / f"{name}.yaml").is_file()


def _text(value: Any) -> str:
    """A value in the grammar of Hydra's command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_text(entry)}' for key, entry in value.items())}}}"  # keys have no quotes there
    if not isinstance(value, str):
        return repr(value)
    if re.fullmatch(r"[A-Za-z_][\w./-]*", value, re.ASCII) and not _means_something(value):
        return value
    # A backslash is one, but in front of a mark or at the end.
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value) + "'"


def _means_something(word: str) -> bool:
    """Whether Hydra would parse a bare word as another type than text."""
    try:
        return word.lower() in ("null", "true", "false") or not math.isfinite(float(word))
    except ValueError:
        return False
