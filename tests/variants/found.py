"""Every variant that the folder holds, found by looking, and what a variant has beside its class."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import variants
from variants.core.variant import AdapterVariant, Variant, field_names
from variants.testing.case import Case
from variants.testing.contract import HOOKS
from variants.testing.toys import HEAD, KINDS, Toy, prepared

CONF = Path(__file__).parents[2] / "conf" / "variant"


def all_variants() -> list[type[Variant]]:
    """The variant classes defined in `variants/*.py`."""
    found = []
    for module_info in pkgutil.iter_modules(variants.__path__):
        if module_info.ispkg or module_info.name.startswith("__"):
            continue
        module = importlib.import_module(f"variants.{module_info.name}")
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, Variant) and cls.__module__ == module.__name__:
                found.append(cls)
    return found


def has_hooks(cls: type[Variant]) -> bool:
    """Whether the method does anything of its own before, in or after a step."""
    return any(getattr(cls, hook) is not getattr(Variant, hook) for hook in HOOKS)


def settings() -> list[tuple[type[Variant], dict[str, Any]]]:
    """Every entry of test_params of every variant that trains."""
    return [(cls, params) for cls in all_variants() if cls.trains for params in cls.test_params()]


def every_case() -> list[Case]:
    """A case for each of these settings on every kind of layer."""
    return [Case(cls, params, kind) for cls, params in settings() for kind in KINDS]


def cases() -> list[Case]:
    """Those that reach all the code that all of them reach: every entry on Linear, and all of a library's own; on every
    other kind the first entry of each class, or one with dropout, which is drawn there by another way: by turns, so
    that every class, every kind and both are there in pairs. An embedding refuses dropout, and has both."""
    found = []
    for number, cls in enumerate(cls for cls in all_variants() if cls.trains):
        entries = cls.test_params()
        first, dropping = entries[0], [params for params in entries if params.get("dropout")]
        for place, kind in enumerate(KINDS):
            if kind == "Linear" or not issubclass(cls, AdapterVariant):
                chosen = entries
            elif kind == "Embedding":
                chosen = [first, *dropping[:1]]
            else:
                chosen = [dropping[place % len(dropping)] if dropping and (number + place) % 2 else first]
            found += [Case(cls, params, kind) for params in chosen]
    return found


def adapting() -> list[tuple[type[AdapterVariant], dict[str, Any]]]:
    """The first class, with the first of its `test_params`, for each class of adapters: what an adapter does in a
    layer's place depends on its own class."""
    found: dict[type, tuple[type[AdapterVariant], dict[str, Any]]] = {}
    for cls in all_variants():
        if issubclass(cls, AdapterVariant):
            variant = prepared(cls, params := cls.test_params()[0])
            assert isinstance(variant, AdapterVariant)
            variant.attach(Toy(), HEAD)
            for adapter in variant.adapters.values():
                found.setdefault(type(adapter), (cls, params))
    return list(found.values())


def marked(cases: Iterable[Case]) -> list[Any]:
    """The cases as parameters of a test, all slow but the first entry of each class on Linear."""
    quick = {(cls, repr(cls.test_params()[0]), "Linear") for cls in all_variants()}
    return [
        pytest.param(case, marks=() if (case.cls, repr(case.params), case.kind) in quick else pytest.mark.slow)
        for case in cases
    ]


def yaml_faults(cls: type[Variant], folder: Path = CONF) -> str | None:
    """What is wrong with a class's YAML, in words: there is none, or its fields or defaults are not the class's."""
    target = f"{cls.__module__}.{cls.__name__}"
    texts = {path.name: path.read_text() for path in sorted(folder.glob("*.yaml"))}
    nodes = [(name, yaml.safe_load(text)) for name, text in texts.items() if target in text]
    mine = {name: node.get("variant", node) for name, node in nodes if target in str(node.get("variant", node))}
    if not mine:
        return f"no file in {folder.name} has _target_: {target}"
    faults = {name: _faults(cls, node) for name, node in mine.items()}
    # A further file may hold other values, as a preset; one has the defaults.
    return None if None in faults.values() else "; ".join(f"{name}: {fault}" for name, fault in faults.items())


def _faults(cls: type[Variant], node: Mapping[str, Any]) -> str | None:
    given, fields = set(node) - {"_target_"}, set(field_names(cls))
    if given != fields:
        return f"{', '.join(sorted(given ^ fields))} is in the YAML or in the class, and not in both"
    for f in dataclasses.fields(cls):
        value = node.get(f.name)
        if not f.init or "${" in str(value):  # a name that is made of another field
            continue
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if _plain(default) != _plain(value):
            return f"{f.name} is {value!r}, the class's default is {default!r}"
    return None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
