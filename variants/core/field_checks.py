"""Checks of hyperparameters, with one wording: the field, the value, what is allowed.

Types are checked for every class by what its annotations say; what a method checks beside is how large a value is.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any

_WORDS: dict[Any, str] = {
    bool: "true, false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
    Any: "anything",
}


def check_types(cls: type, settings: Mapping[str, Any], prefix: str = "") -> None:
    """Each of `settings` is what the annotation of `cls` says; one without an annotation may be anything.

    prefix: stands before a setting's name in the error. Raises `ValueError`.
    """
    hints = hints_of(cls)
    for name, value in settings.items():
        kind = hints.get(name, Any)
        check(f"{prefix}{name}", value, _fits(kind, value), _words(kind))


@functools.cache
def hints_of(cls: type) -> Mapping[str, Any]:
    """What a class says of its arguments' types, by name; nothing where that can't be resolved."""
    try:
        return typing.get_type_hints(cls if dataclasses.is_dataclass(cls) else cls.__init__)  # type: ignore[misc]
    except (NameError, TypeError, AttributeError):
        return {}


def arguments(cls: type) -> dict[str, inspect.Parameter]:
    """What a class is made of, by name."""
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
    if issubclass(kind, Collection) and kind is not str:  # YAML has but one kind of list
        return _is_list(value) and (not parts or all(_fits(parts[0], part) for part in value))
    return isinstance(value, kind)


def _is_list(value: Any) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)


def _words(kind: Any) -> str:
    """What an annotation allows, in words."""
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


def whole(variant: Any, *names: str, at_least: int = 1) -> None:
    """The fields `names` are ≥ `at_least`, and not null. Raises `ValueError`."""
    for name in names:
        value = getattr(variant, name)
        check(name, value, value is not None and value >= at_least, f"a whole number ≥ {at_least}")


def positive(variant: Any, *names: str) -> None:
    """The fields `names` are > 0. Raises `ValueError`."""
    for name in names:
        value = getattr(variant, name)
        check(name, value, value > 0, "a number > 0")


def not_negative(variant: Any, *names: str) -> None:
    """The fields `names` are ≥ 0. Raises `ValueError`."""
    for name in names:
        value = getattr(variant, name)
        check(name, value, value >= 0, "a number ≥ 0")


def share(variant: Any, *names: str) -> None:
    """The fields `names` are shares: 0 ≤ value < 1. Raises `ValueError`."""
    for name in names:
        value = getattr(variant, name)
        check(name, value, 0 <= value < 1, f"0 ≤ {name} < 1")


def one_of(variant: Any, name: str, allowed: Sequence[str]) -> None:
    """The field `name` is one of `allowed`. Raises `ValueError`."""
    value = getattr(variant, name)
    check(name, value, value in allowed, ", ".join(allowed))


def budget(variant: Any, *replaced: str) -> None:
    """`budget` is null or a whole number ≥ 1, and with it the fields `replaced` keep their defaults.

    Raises `ValueError`: what the budget decides can't be set as well.
    """
    if variant.budget is None:
        return
    whole(variant, "budget")
    defaults = {f.name: f.default for f in dataclasses.fields(variant) if f.default is not dataclasses.MISSING}
    for name in replaced:
        value = getattr(variant, name)
        if value != defaults.get(name) and (value or name in defaults):
            raise ValueError(f"{name}: {value!r} with budget: {variant.budget}; the budget decides it, leave it out")


def without_effect(variant: Any, name: str, where: str) -> None:
    """The field `name` keeps its default, for `where`, in words, it does nothing. Raises `ValueError`.

    An option that is silently ignored is worse than one that does not exist.
    """
    value, default = getattr(variant, name), type(variant).__dataclass_fields__[name].default
    if value != default:
        raise ValueError(f"{name}: {value!r} with {where}, allowed: {default}; it has no effect there")


def check(name: str, value: Any, good: bool, allowed: str) -> None:
    """Raises `ValueError` unless `good`."""
    if not good:
        raise ValueError(f"{name}: {value!r}, allowed: {allowed}")
