"""What a step frees the next one gets back without the system's help, and a run gives it back at its end."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from trainer.machine import malloc

LINUX = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")

# Counts the pages that the system brings in while 16 MiB are written and freed, ten times: as a process begins, then
# with pages kept, twice, then after they were given back.
COUNTING = """
import ctypes, resource
from trainer.machine import malloc as pages

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        piece = ctypes.c_void_p(library.malloc(16 << 20))
        ctypes.memset(piece, 1, 16 << 20)
        library.free(piece)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert pages.keep()
found = [faults(), faults()]
pages.give_back()
print(*found, faults())
"""


@pytest.mark.skipif(not LINUX, reason="only the GNU C library is told to keep what is freed")
def test_freed_memory_is_kept_until_it_is_given_back():
    command = [sys.executable, "-c", COUNTING]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    first, kept, given_back = map(int, done.stdout.split())
    assert first > 2000 and kept < 0.2 * first and given_back > 0.5 * first


def test_where_there_is_no_such_library_nothing_is_done(monkeypatch):
    monkeypatch.setattr(malloc.sys, "platform", "darwin")
    assert malloc.keep() is False
    malloc.give_back()
