"""How this process was started: alone, or as one of several by torchrun or `accelerate launch`. Imports no torch."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from trainer.errors import ConfigError

# What a launcher tells its processes. Taken out of the environment once it is read: accelerate and transformers
# would divide rows, wrap the model and gather outputs by it, and here that is `trainer.machine.processes`' part.
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
REFUSED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")


@dataclass(frozen=True)
class Launch:
    """rank: of this process, of `count`. address, port: of their store. agent: whether the launcher holds the store."""

    rank: int = 0
    count: int = 1
    address: str = ""
    port: int = 0
    agent: bool = False


class ToldElsewhere(RuntimeError):
    """This process can't go on, and the first process says why."""


_this = Launch()


def this() -> Launch:
    """How this process was started, as far as `take` was told."""
    return _this


def take() -> None:
    """Reads what the launcher says and hides it from other libraries. Raises `ConfigError`.

    Every process but the first is silent from here on, and sees its own CUDA device alone, as cuda:0.
    """
    global _this
    for name in REFUSED:
        if os.environ.get(name, "").lower() in ("1", "true"):
            raise ConfigError(f"{name}: {os.environ[name]!r}, allowed: false; machine.fsdp=true shards the backbone")
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", ""):
        raise ConfigError(f"ACCELERATE_MIXED_PRECISION: {precision!r}, allowed: 'no'; train.autocast=true is bfloat16")
    if "LOCAL_RANK" not in os.environ:
        return
    told = {name: os.environ.pop(name, "") for name in VARIABLES}
    if (number := int(told["WORLD_SIZE"])) == 1:
        return
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    _this = Launch(int(told["RANK"]), number, told["MASTER_ADDR"], int(told["MASTER_PORT"]), agent)
    _take_device(int(told["LOCAL_RANK"]), int(told["LOCAL_WORLD_SIZE"]))
    if _this.rank:
        logging.disable(logging.CRITICAL)


def _take_device(local: int, processes: int) -> None:
    """Leaves this process the `local`-th of the CUDA devices that there are."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = [str(i) for i in range(processes)] if given is None else [d for d in given.split(",") if d]
    if not devices:
        return  # no CUDA is wanted
    if len(devices) < processes:
        raise ConfigError(f"CUDA_VISIBLE_DEVICES: {given!r}, allowed: {processes} devices, one for each process, or ''")
    os.environ["CUDA_VISIBLE_DEVICES"] = devices[local]
