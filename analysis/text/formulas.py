"""Keeps spreadsheets from running text as a formula."""

from __future__ import annotations

import re
from typing import Any

_BEGIN = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last four: wide = + - @
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def inert(value: Any) -> Any:
    """A value for a csv cell: text that starts like a formula gets a leading apostrophe."""
    if type(value) is str and value.startswith(_BEGIN) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value
