"""Runs a function in two processes of one run, which are forked from a process that has imported everything."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tests.trainer import preloaded
from trainer.machine import launch

SECONDS = 3600  # after which nothing of a pair is left, however busy the machine is

_forks = multiprocessing.get_context("forkserver")

_forks.set_forkserver_preload(
    [
        "tests.trainer.machine.pair",
        "tests.variants.found",
        "trainer.machine.sharding",
        "torch.distributed.nn.functional",
        *preloaded.NAMES,
    ]
)


@dataclass
class Pair:
    """Two processes; `ends` waits for both and gives their exit codes."""

    processes: list[BaseProcess]

    def ends(self, within: float = SECONDS) -> list[int | None]:
        until = time.monotonic() + within
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        return [process.exitcode for process in self.processes]


@contextlib.contextmanager
def started(call: Callable[..., Any], *arguments: Any, count: int = 2) -> Iterator[Pair]:
    """`call(*arguments)` in `count` processes that know of each other as torchrun's do; none is left at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = [launch.Launch(rank, count, "127.0.0.1", port) for rank in range(count)]
    found = [_forks.Process(target=_enter, args=(place, call, *arguments)) for place in places]
    try:
        for process in found:
            process.start()
        yield Pair(found)
    finally:
        for process in found:
            process.kill()
            process.join()


def _enter(place: launch.Launch, call: Callable[..., Any], *arguments: Any) -> None:
    import torch

    torch.set_num_threads(1)
    launch._this = place
    call(*arguments)


def sweep(jobs: list[DictConfig], report: Path) -> None:
    """Carries out runs one after the other; the exit code is the number of those that failed."""
    os._exit(sum(not run(config, report, ends=False) for config in jobs))


def run(config: DictConfig, report: Path, ends: bool = True) -> bool:
    """Carries out one run as train.py does. Its error, if any, is added to a file in `report` of the process's number.

    ends: whether an error ends the process, and not only the run; returns whether there was none.
    """
    from trainer.config import register
    from trainer.errors import one_line
    from trainer.machine import processes
    from trainer.runs.run import run
    from trainer.sweeps.plan import plan

    register()
    planned = plan(config)
    try:
        with processes.joined(planned.config.machine.fsdp), planned.locked():
            run(planned, [])
    except Exception as error:
        with (report / f"error-{launch.this().rank}").open("a") as file:
            file.write(f"{one_line(error)}\n")
        if ends:
            os._exit(1)
        return False
    return True
