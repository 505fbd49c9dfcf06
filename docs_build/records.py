"""The reference of a record's fields, from `trainer/record_fields.py`."""

from __future__ import annotations

import dataclasses
import inspect

from docs_build.fields import of_class
from docs_build.markdown import code, table
from trainer.record import CHECKSUM
from trainer.record_fields import GROUPS, OPEN_GROUPS, VERSION, Fields, unit

INTRODUCTION = f"""\
# The record

Every run leaves one `record.json`: a flat row with a value for each name below (version {VERSION}). A number that
was not measured is absent, never zero. `python -m analysis collect` makes a data frame of records, with these names as
columns; `{CHECKSUM}` in the file is the hash of all others.
"""


def page() -> str:
    """The text of the page."""
    fields = [f for f in of_class(Fields) if f.name not in GROUPS and f.name not in OPEN_GROUPS]
    parts = [INTRODUCTION, "## The run\n", (inspect.getdoc(Fields) or "") + "\n"]
    parts.append(table(("field", "type", "meaning"), [(code(f.name), f.type, f.meaning) for f in fields]))
    for name, cls in GROUPS.items():
        own = cls.__dict__.get("__doc__") or ""
        own = "" if own.startswith(f"{cls.__name__}(") else inspect.cleandoc(own)
        parts.append(f"## `{name}`\n\n{own}\n")
        rows = [(code(f"{name}.{f.name}"), f.type, unit(f"{name}.{f.name}"), f.meaning) for f in of_class(cls)]
        parts.append(table(("field", "type", "unit", "meaning"), rows))
    parts.append("## Groups of any names\n")
    meanings = {f.name: f for f in of_class(Fields)}
    parts.append(table(("group", "meaning"), [(code(f"{name}.…"), meanings[name].meaning) for name in OPEN_GROUPS]))
    return "\n".join(parts)


def undescribed() -> list[str]:
    """Names of fields without a meaning."""
    named = [(f.name, f.meaning) for f in of_class(Fields) if f.name not in GROUPS]
    named += [(f"{group}.{f.name}", f.meaning) for group, cls in GROUPS.items() for f in of_class(cls)]
    return [name for name, meaning in named if not meaning]


def measured() -> list[str]:
    """Names of the numbers in groups."""
    return [f"{group}.{f.name}" for group, cls in GROUPS.items() for f in dataclasses.fields(cls)]
