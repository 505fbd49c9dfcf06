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


_frozen = False  # gc.get_freeze_count() would count a million objects each time


def freeze() -> None:
    """Excludes the objects that exist from all later collections."""
    global _frozen
    gc.freeze()
    _frozen = True


@functools.cache
def freeze_imports() -> None:
    """The same once, for what is imported; every run triggers two full collections."""
    gc.collect()
    freeze()


def move_to_oldest() -> None:
    """Moves the objects that exist to the oldest generation, unless some are frozen, which would thaw."""
    if not _frozen:
        gc.freeze()
        gc.unfreeze()
