"""Text that a spreadsheet leaves alone: a cell of csv that begins like a formula would be carried out."""

from __future__ import annotations

import re
from typing import Any

_BEGIN = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last four: wide = + - @
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def inert(value: Any) -> Any:
    """The value of a cell: a text that begins like a formula has an apostrophe in front, all else is as it is."""
    if type(value) is str and value.startswith(_BEGIN) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value
