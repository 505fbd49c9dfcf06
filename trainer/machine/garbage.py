"""Python's garbage collector and imports: a million objects that live as long as the process."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """No garbage is collected within it. For imports: collections would take a tenth of their time and free nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@functools.cache
def freeze_imports() -> None:
    """Excludes the objects that exist from all later collections; every run triggers two full ones."""
    gc.collect()
    gc.freeze()
