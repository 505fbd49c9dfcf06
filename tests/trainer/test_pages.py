"""What a step frees the next one gets back without the system's help, and a run gives it back at its end."""

from __future__ import annotations

import ctypes
import os
import resource
import sys

import pytest

from tests.trainer.sweeping import forked
from trainer import pages

LINUX = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
SIZE = 16 << 20


def faults() -> int:
    """Pages that the system brings in while a large piece of memory is written and freed, ten times."""
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        piece = ctypes.c_void_p(library.malloc(SIZE))
        ctypes.memset(piece, 1, SIZE)
        library.free(piece)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not LINUX, reason="only the GNU C library is told to keep what is freed")
def test_freed_memory_is_kept_until_it_is_given_back(tmp_path):
    def check() -> None:
        assert pages.keep()
        first = faults()
        assert faults() < 0.2 * first, "it was there"
        pages.give_back()
        assert faults() > 0.5 * first, "it had gone"

    with forked(check, tmp_path / "output") as child:
        _, status = os.waitpid(child, 0)
    assert status == 0, (tmp_path / "output").read_text()


def test_where_there_is_no_such_library_nothing_is_done(monkeypatch):
    monkeypatch.setattr(pages.sys, "platform", "darwin")
    assert pages.keep() is False
    pages.give_back()
