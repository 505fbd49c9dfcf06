"""Sweeps in this process or in a fork of it, so that a test pays for no import."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from joblib.externals.loky import reusable_executor

import train
from tests.conftest import ROOT
from tests.trainer import preloaded
from trainer import config as run_config
from trainer import record as records
from trainer.machine import garbage
from trainer.machine.signals import Interrupted

PATIENCE = 3600.0  # seconds, however busy the machine is, after which what is waited for will not come

QUIET = ["hydra/job_logging=none", "hydra/hydra_logging=none"]  # logging stays as pytest set it


def sweep(overrides: list[str], logging: list[str] = QUIET) -> None:
    """What `train.py -m` does, without its command line."""
    preloaded.load()
    garbage.freeze_imports()
    run_config.register()
    GlobalHydra.instance().clear()
    hydra = Hydra.create_main_hydra2("train", create_config_search_path(str(ROOT / "conf")))
    try:
        hydra.multirun("config", train.main.__wrapped__, ["hydra.mode=MULTIRUN", *logging, *overrides])
    finally:
        GlobalHydra.instance().clear()


@contextlib.contextmanager
def forked(call: Callable[[], None], output: Path) -> Iterator[int]:
    """`call` in a fork of this process; its exit code is 0, 1 after an error, or that of `Interrupted`."""
    preloaded.load()
    if (child := os.fork()) == 0:
        code = 1
        garbage.freeze()  # to collect what there was would copy it
        try:
            sys.stdout = sys.stderr = file = output.open("a", buffering=1)  # pytest has replaced both
            for number in (1, 2):  # for what the fork starts
                os.dup2(file.fileno(), number)
            call()
            code = 0
        except Interrupted as stop:
            code = stop.exit_code
        except SystemExit as end:  # as Python does it
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            if os.waitpid(child, os.WNOHANG) == (0, 0):
                os.kill(child, 9)
                os.waitpid(child, 0)


def command(overrides: list[str], flags: tuple[str, ...] = ("-m",)) -> None:
    """All of `python train.py -m` but Python's start and the imports, which are most of its time. For a fork."""
    os.chdir(ROOT)
    os.environ["HYDRA_MAIN_MODULE"] = "__main__"  # so that Hydra looks for conf/ beside train.py
    GlobalHydra.instance().clear()
    sys.argv = ["train.py", *flags, *overrides]
    try:
        train.cli()
    finally:
        if (workers := reusable_executor._executor) is not None:  # joblib's, which an interpreter ends when it ends
            workers.shutdown(kill_workers=True)


@contextlib.contextmanager
def started(overrides: list[str], output: Path, flags: tuple[str, ...] = ("-m",)) -> Iterator[int]:
    """`command` in a fork, which writes to `output`."""
    with forked(lambda: command(overrides, flags), output) as child:
        yield child


def finished(overrides: list[str], output: Path, flags: tuple[str, ...] = ("-m",)) -> tuple[int, str]:
    """Exit code of a `command` in a fork, and what it wrote."""
    begin = len(output.read_text()) if output.exists() else 0
    with started(overrides, output, flags) as child:
        code = ended(child)
    return code, output.read_text()[begin:]


def wait_for(child: int, something: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Waits until there is something; raises where the fork ends before, or takes too long."""
    deadline = time.monotonic() + seconds
    while not something():
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            raise ChildProcessError(f"process {child} has ended")
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing after {seconds} s")
        time.sleep(0.002)


def ended(child: int, seconds: float = PATIENCE) -> int:
    """Exit code of a fork, negative where a signal ended it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    raise TimeoutError(f"process {child} has not ended after {seconds} s")


def rows(folder: Path) -> dict[str, dict]:
    """What must not depend on when and how the runs were made, and what they logged."""
    changing = ("time.", "started", "finished", "memory.peak_rss", "study", "overrides", "git.", "checksum")
    found = {}
    for path in map(Path, records.find(folder)):
        row = {k: v for k, v in records.read(path).row().items() if not k.startswith(changing)}
        journal = path / "metrics.jsonl"
        found[path.name] = row | {"journal": journal.read_text() if journal.exists() else None}
    return found
