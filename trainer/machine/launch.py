"""How this process was launched: alone, or as one of several by torchrun or `accelerate launch`. Imports no torch."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from trainer.errors import ConfigError

# Set by a launcher for its processes, and removed from the environment once read: accelerate and transformers would
# shard rows, wrap the model and gather outputs, which is the task of `trainer.machine.processes`.
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
REFUSED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")


@dataclass(frozen=True)
class Launch:
    """rank: of this process among `count`. address, port: of their store. agent: whether the launcher hosts it."""

    rank: int = 0
    count: int = 1
    address: str = ""
    port: int = 0
    agent: bool = False


class FirstReports(RuntimeError):
    """This process can't continue; the first process reports the error."""


_this = Launch()


def this() -> Launch:
    """The launch of this process, a single process unless `take` has read otherwise."""
    return _this


def take() -> None:
    """Reads the launcher's variables and hides them from other libraries. Raises `ConfigError`.

    Every process sees only its own CUDA device, as cuda:0. All processes but the first log nothing from here on.
    """
    global _this
    for name in REFUSED:
        if os.environ.get(name, "").lower() in ("1", "true"):
            raise ConfigError(f"{name}: {os.environ[name]!r}, allowed: false; machine.fsdp=true shards the backbone")
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", ""):
        raise ConfigError(
            f"ACCELERATE_MIXED_PRECISION: {precision!r}, allowed: 'no'; train.autocast=true enables bfloat16"
        )
    if "LOCAL_RANK" not in os.environ:
        return
    values = {name: os.environ.pop(name, "") for name in VARIABLES}
    if (count := int(values["WORLD_SIZE"])) == 1:
        return
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    _this = Launch(int(values["RANK"]), count, values["MASTER_ADDR"], int(values["MASTER_PORT"]), agent)
    _take_device(int(values["LOCAL_RANK"]), int(values["LOCAL_WORLD_SIZE"]))
    if _this.rank:
        logging.disable(logging.CRITICAL)


def _take_device(local: int, processes: int) -> None:
    """Restricts this process to the `local`-th visible CUDA device."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = [str(i) for i in range(processes)] if given is None else [d for d in given.split(",") if d]
    if not devices:
        return  # CUDA is disabled
    if len(devices) < processes:
        raise ConfigError(f"CUDA_VISIBLE_DEVICES: {given!r}, allowed: {processes} devices, one for each process, or ''")
    os.environ["CUDA_VISIBLE_DEVICES"] = devices[local]
