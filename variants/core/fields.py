"""Checks of hyperparameters, with one wording: the field, the value, what is allowed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any


def whole(variant: Any, *names: str, at_least: int = 1) -> None:
    """The fields `names` are whole numbers ≥ `at_least`. Raises `ValueError`."""
    for name in names:
        value = getattr(variant, name)
        _check(name, value, type(value) is int and value >= at_least, f"a whole number ≥ {at_least}")


def positive(variant: Any, *names: str) -> None:
    """The fields `names` are finite numbers > 0. Raises `ValueError`."""
    for name in names:
        value = getattr(variant, name)
        _check(name, value, isinstance(value, int | float) and math.isfinite(value) and value > 0, "a number > 0")


def not_negative(variant: Any, *names: str) -> None:
    """The fields `names` are finite numbers ≥ 0. Raises `ValueError`."""
    for name in names:
        value = getattr(variant, name)
        _check(name, value, isinstance(value, int | float) and math.isfinite(value) and value >= 0, "a number ≥ 0")


def share(variant: Any, *names: str) -> None:
    """The fields `names` are shares: 0 ≤ value < 1. Raises `ValueError`."""
    for name in names:
        value = getattr(variant, name)
        _check(name, value, isinstance(value, int | float) and 0 <= value < 1, f"0 ≤ {name} < 1")


def one_of(variant: Any, name: str, allowed: Sequence[str]) -> None:
    """The field `name` is one of `allowed`. Raises `ValueError`."""
    value = getattr(variant, name)
    _check(name, value, value in allowed, ", ".join(allowed))


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


def _check(name: str, value: Any, good: bool, allowed: str) -> None:
    if not good:
        raise ValueError(f"{name}: {value!r}, allowed: {allowed}")
