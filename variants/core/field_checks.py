"""Checks of hyperparameters. Every error has one wording: the field, the value, what is allowed.

Types of all fields are checked against the class's annotations; methods check the ranges of values.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from variants.core import placement

T = TypeVar("T")
C = TypeVar("C", bound=type[Any])

_WORDS: dict[Any, str] = {
    bool: "true, false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
    Any: "anything",
}


def check_types(cls: type, settings: Mapping[str, Any], prefix: str = "") -> None:
    """Check that each of `settings` has the type of its annotation in `cls`; without an annotation any type is allowed.

    prefix: is put before a setting's name in the error. Raises `ValueError`.
    """
    hints = hints_of(cls)
    for name, value in settings.items():
        kind = hints.get(name, Any)
        check(f"{prefix}{name}", value, _fits(kind, value), _words(kind))


@functools.cache
def hints_of(cls: type) -> Mapping[str, Any]:
    """Return the type annotations of a class's arguments, by name; empty if they can't be resolved."""
    try:
        return typing.get_type_hints(cls if dataclasses.is_dataclass(cls) else cls.__init__)  # type: ignore[misc]
    except (NameError, TypeError, AttributeError):
        return {}


def arguments(cls: type) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class's constructor, by name."""
    return dict(inspect.signature(cls).parameters)


def _fits(kind: Any, value: Any) -> bool:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or isinstance(kind, typing.TypeVar):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(part, value) for part in parts)
    if origin is typing.Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if kind in (bool, int):
        return type(value) is kind
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    kind = origin or kind
    if not isinstance(kind, type):
        return True
    if kind is tuple and parts and parts[-1] is not Ellipsis:
        return _is_list(value) and len(value) == len(parts) and all(map(_fits, parts, value))
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping) and (not parts or all(_fits(parts[1], part) for part in value.values()))
    if issubclass(kind, Collection) and kind is not str:  # YAML has one kind of list
        return _is_list(value) and (not parts or all(_fits(parts[0], part) for part in value))
    return isinstance(value, kind)


def _is_list(value: Any) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)


def _words(kind: Any) -> str:
    """Return in words what an annotation allows."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return ", ".join(dict.fromkeys(_words(part) for part in parts))
    if origin is typing.Literal:
        return ", ".join(map(str, parts))
    if kind in _WORDS:
        return _WORDS[kind]
    kind = origin or kind
    if kind is tuple and parts and parts[-1] is not Ellipsis:
        return f"[{', '.join(map(_words, parts))}]"
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return "{name: " + (_words(parts[1]) if parts else "value") + "}"
    if isinstance(kind, type) and issubclass(kind, Collection):
        return f"a list of: {_words(parts[0])}" if parts else "a list"
    return str(getattr(kind, "__name__", kind))


def check_int(variant: Any, *names: str, at_least: int = 1) -> None:
    """Check that the fields `names` are ≥ `at_least` and not null. Raises `ValueError`."""
    for name in names:
        value = getattr(variant, name)
        check(name, value, value is not None and value >= at_least, f"a whole number ≥ {at_least}")


def check_positive(variant: Any, *names: str) -> None:
    """Check that the fields `names` are > 0. Raises `ValueError`."""
    for name in names:
        value = getattr(variant, name)
        check(name, value, value > 0, "a number > 0")


def check_not_negative(variant: Any, *names: str) -> None:
    """Check that the fields `names` are ≥ 0. Raises `ValueError`."""
    for name in names:
        value = getattr(variant, name)
        check(name, value, value >= 0, "a number ≥ 0")


def check_fraction(variant: Any, *names: str) -> None:
    """Check that the fields `names` are fractions, 0 ≤ value < 1. Raises `ValueError`."""
    for name in names:
        value = getattr(variant, name)
        check(name, value, 0 <= value < 1, f"0 ≤ {name} < 1")


def check_one_of(variant: Any, name: str, allowed: Sequence[str]) -> None:
    """Check that the field `name` is one of `allowed`. Raises `ValueError`."""
    value = getattr(variant, name)
    check(name, value, value in allowed, ", ".join(allowed))


def check_budget(variant: Any, *replaced: str) -> None:
    """Check that `budget` is null or an integer ≥ 1, and that with a budget the fields `replaced` have their defaults.

    Raises `ValueError`, because fields that the budget decides can't be set as well.
    """
    if variant.budget is None:
        return
    check_int(variant, "budget")
    defaults = {f.name: f.default for f in dataclasses.fields(variant) if f.default is not dataclasses.MISSING}
    for name in replaced:
        value = getattr(variant, name)
        if value != defaults.get(name) and (value or name in defaults):
            allowed = "null" if defaults.get(name) is None else defaults[name]
            raise ValueError(f"{name}: {value!r} with budget: {variant.budget}, which decides it; allowed: {allowed}")


def check_without_effect(variant: Any, name: str, where: str) -> None:
    """Check that the field `name` has its default, because it has no effect there. Raises `ValueError`.

    where: the setting under which it has no effect, in words. A silently ignored option is worse than a missing one.
    """
    value, default = getattr(variant, name), type(variant).__dataclass_fields__[name].default
    if value != default:
        raise ValueError(f"{name}: {value!r} with {where}, allowed: {default}; it has no effect there")


def registrar(table: dict[str, type[Any]]) -> Callable[[str], Callable[[C], C]]:
    """Return `register`: `@register("name")` above a class enters it in `table`, where a config names it so."""

    def register(name: str) -> Callable[[C], C]:
        def add(cls: C) -> C:
            table[name] = cls
            return cls

        return add

    return register


def class_named(field: str, name: str, known: Mapping[str, type[T]], base: type[T]) -> type[T]:
    """Return the class that `field` names: by a name of `known`, or by the dotted path of a subclass of `base`.

    Raises `ValueError`.
    """
    if name in known:
        return known[name]
    module, _, attribute = name.rpartition(".")
    allowed = f"{', '.join(known)}, or the dotted path of a subclass of {base.__module__}.{base.__name__}"
    try:
        cls: Any = getattr(importlib.import_module(placement.imported(module)), attribute) if module else None
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{field}: {name!r}, allowed: {allowed}; {error}") from None
    check(field, name, isinstance(cls, type) and issubclass(cls, base), allowed)
    found: type[T] = cls
    return found


def fields_of(part: type) -> list[str]:
    """Return the names of the settings of a dataclass that is a part of a method."""
    return [f.name for f in dataclasses.fields(part) if f.init]


def check(name: str, value: Any, good: bool, allowed: str) -> None:
    """Raise `ValueError` unless `good`."""
    if not good:
        raise ValueError(f"{name}: {value!r}, allowed: {allowed}")
