"""Checks of hyperparameters, with one wording: the field, the value, what is allowed."""

from __future__ import annotations

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


def _check(name: str, value: Any, good: bool, allowed: str) -> None:
    if not good:
        raise ValueError(f"{name}: {value!r}, allowed: {allowed}")
