"""Keeps the memory that a training step gives back, for the next step to take.

The C library returns large pieces to the system as they are freed. A step on a CPU then gets them anew, and the system
brings every page in again when it is first written: with MiniLM and 8 texts of 128 tokens, a seventh of the step.
Only the GNU C library is told so; elsewhere nothing is changed.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_LARGEST = 32 << 20  # bytes; the largest threshold that every version takes
_NEVER = 2**31 - 1


def _library() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "gnu_get_libc_version") else None


def keep() -> bool:
    """From now on this process keeps what it frees; whether the C library could be told."""
    library = _library()
    return library is not None and all(
        library.mallopt(option, value) == 1
        for option, value in ((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, _NEVER))
    )


def give_back() -> None:
    """Returns to the system what is free now."""
    library = _library()
    if library is not None:
        library.malloc_trim(0)
