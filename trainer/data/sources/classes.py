"""Names of classes as the user's tables have them: their order, and names that look alike."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from trainer.data.sources.checks import refuse_halves
from trainer.errors import ConfigError

log = logging.getLogger(__name__)


def class_names(values: Sequence[Any], where: str) -> list[str]:
    """Labels as strings: the numbers 1 and 1.0 are one class, "1". Raises `ConfigError` with the row, from 1."""
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
    """The different names in the order of their ids: whole numbers by value, then spelling; others by alphabet."""
    unique = sorted(set(names))
    try:
        return sorted(unique, key=int)
    except ValueError:
        return unique


def check_names(names: Sequence[str], where: str) -> None:
    """Raises `ConfigError` for class names between which no reader can see a difference; warns of those that a
    spreadsheet or another format may have made two of: in case, width, or as a number.
    """
    for alike in _alike(names, _seen):
        raise ConfigError(
            f"{where}: the labels {_listed(alike)} differ in what can't be seen, white space or the code of a letter;"
            " allowed: one spelling for one class"
        )
    for alike in _alike(names, _meant):
        log.warning("%s: the labels %s look alike and are %d classes", where, _listed(alike), len(alike))


def _alike(names: Iterable[str], form: Callable[[str], object]) -> list[list[str]]:
    groups: dict[object, list[str]] = {}
    for name in names:
        groups.setdefault(form(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _seen(name: str) -> str:
    """What a reader sees: nothing of the kind of white space, of signs without width, of how an accent is written."""
    visible = "".join(
        c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c) not in ("Cf", "Cc") or c.isspace()
    )
    return " ".join(visible.split())


def _meant(name: str) -> object:
    """What may have been meant: in either case, of full or half width, and as a number."""
    folded = unicodedata.normalize("NFKC", _seen(name)).casefold()
    try:
        return float(folded)
    except ValueError:
        return folded


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(ascii, names))
