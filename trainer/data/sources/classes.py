"""Class names from the user's tables: how they are read and ordered, and which of them look alike."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from trainer.data.sources.checks import refuse_halves
from trainer.errors import ConfigError

log = logging.getLogger(__name__)


def class_names(values: Sequence[Any], where: str) -> list[str]:
    """Returns labels as strings; 1 and 1.0 are the class "1". Raises `ConfigError` with the row, counted from 1."""
    names = []
    for row, value in enumerate(values, 1):
        if isinstance(value, float):
            if not value.is_integer():
                raise ConfigError(
                    f"{where}: row {row} is {value}; allowed: whole numbers or names, or task.source.kind=regression"
                )
            value = int(value)
        if value is None or not isinstance(value, str | int) or not str(value).strip():
            raise ConfigError(f"{where}: row {row} is {value!r}; allowed: a name or a whole number")
        refuse_halves(str(value), f"{where}: row {row}")
        names.append(str(value))
    return names


def class_order(names: Iterable[str]) -> list[str]:
    """Returns the distinct names ordered by class id: integers by value, then by spelling; others alphabetically."""
    unique = sorted(set(names))
    try:
        return sorted(unique, key=int)
    except ValueError:
        return unique


def check_names(names: Sequence[str], where: str) -> None:
    """Raises `ConfigError` for class names that look identical to a reader.

    Logs a warning for names that a spreadsheet or another format may have split: they differ in case, width, or
    notation of a number.
    """
    for alike in _alike(names, _seen):
        raise ConfigError(
            f"{where}: the labels {_listed(alike)} differ invisibly, in white space or in the code of a letter;"
            " allowed: one spelling per class"
        )
    for alike in _alike(names, _meant):
        log.warning("%s: the labels %s look alike but are %d classes", where, _listed(alike), len(alike))


def _alike(names: Iterable[str], form: Callable[[str], object]) -> list[list[str]]:
    """Groups of two or more names that `form` maps to the same value."""
    groups: dict[object, list[str]] = {}
    for name in names:
        groups.setdefault(form(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _seen(name: str) -> str:
    """Returns a name as a reader sees it, whatever its white space, zero-width characters and composed accents."""
    visible = "".join(
        c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c) not in ("Cf", "Cc") or c.isspace()
    )
    return " ".join(visible.split())


def _meant(name: str) -> object:
    """Returns what the name may have meant: without case and width, and as a number if it is one."""
    folded = unicodedata.normalize("NFKC", _seen(name)).casefold()
    try:
        return float(folded)
    except ValueError:
        return folded


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(ascii, names))
