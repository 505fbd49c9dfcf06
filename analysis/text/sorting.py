"""Natural order of names: `rank=4` before `rank=16`."""

from __future__ import annotations

import re

_DIGITS = re.compile(r"([0-9]+)")


def natural(name: str) -> tuple[object, ...]:
    """Sort key that ignores case and compares digits as numbers; the exact text breaks ties."""
    chunks: list[tuple[int, int, str]] = []
    for chunk in _DIGITS.split(name.casefold()):
        if chunk[:1].isascii() and chunk[:1].isdigit():
            # Without leading zeros, the longer number is larger. int() would refuse very long ones.
            number = chunk.lstrip("0")
            chunks.append((0, len(number), number))
        elif chunk:
            chunks.append((1, 0, chunk))
    return (tuple(chunks), name)
