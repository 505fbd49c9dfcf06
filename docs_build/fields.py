"""The fields of dataclasses with their types, defaults and meanings, read from the code."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from docs_build.markdown import comments, described


@dataclass(frozen=True)
class Field:
    """A field that may be set or read. default: as YAML; empty for one that must be given."""

    name: str
    type: str
    default: str
    meaning: str


@functools.cache
def of_class(cls: type) -> list[Field]:
    """The fields of a dataclass; a meaning is the comment behind a field, or what a docstring of the class says."""
    found = []
    meanings = spoken(cls)
    for f in dataclasses.fields(cls):
        if f.init:
            default = "" if f.default is dataclasses.MISSING else shown(f.default)
            found.append(Field(f.name, typed(f), default, meanings.get(f.name, "")))
    return found


def typed(f: dataclasses.Field[Any]) -> str:
    """The annotation of a field; `Any` of a switch is what its default is."""
    text = f.type if isinstance(f.type, str) else getattr(f.type, "__name__", str(f.type))
    if text == "Any":
        return "bool" if isinstance(f.default, bool) else "any"
    return text.removesuffix(" | None")


def shown(value: Any) -> str:
    """A value as it is written in YAML; empty for one that must be given."""
    if value == "???":
        return ""
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


def spoken(cls: type) -> Mapping[str, str]:
    """Meanings by field: of comments in the class's body, else of its docstring, else of those of its bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base is object or not dataclasses.is_dataclass(base):
            continue
        found |= _own(base)
    return found


@functools.cache
def _own(cls: type) -> Mapping[str, str]:
    """Meanings that the class itself gives."""
    source = textwrap.dedent(inspect.getsource(cls))
    said = comments(source)
    found = described(inspect.cleandoc(cls.__dict__.get("__doc__") or ""))
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.ClassDef)
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.lineno in said:
            found[line.target.id] = said[line.lineno]
    return found


def resolved(target: str) -> type:
    """The class that a `_target_` names."""
    module, _, name = target.rpartition(".")
    importlib.import_module(module)
    cls = getattr(sys.modules[module], name)
    assert isinstance(cls, type)
    return cls
