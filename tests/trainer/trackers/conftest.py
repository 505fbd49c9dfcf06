"""W&B without the account, the settings and the caches of whoever runs the tests; trackers without imports."""

from __future__ import annotations

import atexit
import importlib
import os
import signal
import subprocess
import sys
import threading

import pytest

from tests.trainer import preloaded
from trainer.machine import garbage
from trainer.trackers import guard, host

# What the trackers' processes import, W&B and trackio as they start, and pictures at the end.
IMPORTED = ["wandb", "wandb.sdk.lib.wbauth", "trackio", "matplotlib.figure", "matplotlib.backends.backend_agg"]


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith(("WANDB_", "TRACKIO_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(folder / "netrc"))
    for name in ("CONFIG", "CACHE"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(folder / name.lower()))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody answers there, at once


@pytest.fixture
def forked_hosts(monkeypatch) -> None:
    """Trackers' processes are forks of this one, which has imported what they need."""
    preloaded.load()
    for name in IMPORTED:
        importlib.import_module(name)

    def start(errors):
        pipe = subprocess.PIPE
        return subprocess.Popen(
            ["fork"], stdin=pipe, stdout=pipe, stderr=errors, bufsize=0, start_new_session=True, preexec_fn=serve
        )

    monkeypatch.setattr(guard, "_start", start)


def serve() -> None:
    """All of `python -m trainer.trackers.host` but Python's start, in the process that would begin another program."""
    garbage.freeze()  # to collect what there was would copy it
    os.closerange(3, 1 << 16)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python has it
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))  # pytest has replaced both
    atexit._clear()  # of the tests' own
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        del sys.modules[name]  # its store is chosen when it is imported
    code = 1
    try:
        host.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        threading._shutdown()  # what an interpreter waits for when it ends
        atexit._run_exitfuncs()
        os._exit(code)
