"""Several processes for one run: each trains on its part of every batch, and all hold the same parameters.

    torchrun --nproc-per-node 2 train.py variant=lora task=movie

The model is not wrapped. DistributedDataParallel sorts the parameters into buckets when training starts, and
parameters that change their size, join, leave, or have no gradient in a step don't fit in there. The gradients of
adapters are small, so after the last backward pass of a step they are laid end to end and summed in one all-reduce,
before they are clipped and before any hook of the variant; what a hook then sees is the same on every process, and
so is what it does. transformers works as in a single process (`trainer.machine.launch`).

    rows        `trainer.machine.batch_shards`: n processes of batch size b see what one of batch size n·b sees
    loss        every row of a step weighs the same, whichever process has it (`variants.core.step`)
    draws       dropout differs between processes; what a hook draws is what the first process draws
    evaluation  batches are dealt out, outputs put together in order: those of a single process
    files       the first process writes, all read
    errors      one that a single process meets ends the run on all, and the first process reports it
    equality    parameters and the variant's state are compared at every checkpoint and at the end

CUDA devices talk by NCCL, tensors on the CPU by Gloo. The processes need one kind of hardware, for they must
round alike, and one file system.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import hashlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from trainer.errors import ConfigError, RunFailed, one_line
from trainer.machine import launch
from variants.core.collectives import Diverged, all_reduce_sum, count, rank

T = TypeVar("T")

TIMEOUT = datetime.timedelta(minutes=30)  # for the slowest process to come to where the others wait

_store: dist.Store | None = None
_joined = 0  # runs that the processes of this launch have joined for


class ProcessLost(RunFailed):
    """Another process of this run has failed or is gone; one line that says what is known of it."""


def is_first() -> bool:
    """Whether this process is the one that writes; the only one of a run always is."""
    return rank() == 0


@contextlib.contextmanager
def joined(divided: bool = False) -> Iterator[None]:
    """Within it the processes of a launch work on one run; nothing happens for a process that was started alone.

    An error on one process ends the run on all: the first raises `ProcessLost` in its place, the others
    `trainer.machine.launch.ToldElsewhere`. divided: whether the backbone may be; then such an error ends the processes,
    for nothing else lets go of the group that a divided weight belongs to.
    """
    this = launch.this()
    if this.count == 1:
        yield
        return
    _open()
    try:
        yield
        dist.barrier()
    except Exception as error:
        found = cause(error)
        _forget(error)
        alike = isinstance(found, ConfigError | RunFailed | Diverged) and not isinstance(found, ProcessLost)
        if divided and not alike:
            sys.exit(1 if this.rank else f"error: {one_line(found)}")
        if this.rank:
            raise launch.ToldElsewhere(one_line(found)) from error
        if found is error:
            raise
        raise found from error
    finally:
        dist.destroy_process_group()  # which the others notice, should they wait for this one


def _forget(error: BaseException | None) -> None:
    """Empties the frames that `error` has passed, or a model in one of them would keep its group's sockets open."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        traceback.clear_frames(error.__traceback__)
        seen.append(error)
        error = error.__cause__ or error.__context__
    del seen, error
    gc.collect()


def _open() -> None:
    # Its functions have the group of the moment of their import as a default: it would outlive the run, connections
    # and all, and the other processes would wait for one whose run has failed.
    import torch.distributed.nn.functional  # noqa: F401

    global _store, _joined
    this = launch.this()
    if _store is None:
        _store = dist.TCPStore(
            this.address, this.port, this.count, is_master=this.rank == 0 and not this.agent, timeout=TIMEOUT
        )
    _joined += 1
    store = dist.PrefixStore(f"run {_joined}", _store)
    dist.init_process_group(store=store, rank=this.rank, world_size=this.count, timeout=TIMEOUT)


def cause(error: Exception) -> Exception:
    """The error that ended the run, of which `error` may be but the echo. Tells it to the other processes."""
    if count() == 1 or isinstance(error, ProcessLost):
        return error
    assert _store is not None
    board = dist.PrefixStore(f"errors of run {_joined}", _store)
    try:
        return _told(error, board)
    except dist.DistError:
        return ProcessLost("the process that holds the store of this run has ended without a word")


def _told(error: Exception, board: dist.Store) -> Exception:
    if type(error) is RuntimeError or isinstance(error, dist.DistError):  # as collectives raise
        for other in range(count()):
            if other != rank() and board.check([str(other)]):
                return ProcessLost(f"process {other}: {board.get(str(other)).decode()}")
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
            return ProcessLost("another process of this run has ended without a word")
    board.set(str(rank()), one_line(error))
    return error


# -- agreement ------------------------------------------------------------------------------------


def from_first(make: Callable[[], T]) -> T:
    """What `make` gives on the first process, on all."""
    if count() == 1:
        return make()
    found = [make() if is_first() else None]
    dist.broadcast_object_list(found)
    return found[0]  # type: ignore[return-value]


def in_turn(make: Callable[[], T]) -> T:
    """What `make` gives on each process; it is called on the first process, and only then on the others."""
    if count() == 1:
        return make()
    if is_first():
        found = make()
        dist.barrier()
        return found
    dist.barrier()
    return make()


def wait() -> None:
    """Returns when all processes are here."""
    if count() > 1:
        dist.barrier()


def sum_of(value: int) -> int:
    """The sum of `value` over the processes."""
    return int(all_reduce_sum(torch.tensor(value))) if count() > 1 else value


def any_of(value: bool) -> bool:
    """Whether `value` is true on any process."""
    return bool(sum_of(int(value)))


def gathered(value: T) -> list[T]:
    """`value` of every process, in their order."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value)
    return found


def agree(what: str, value: T) -> None:
    """Raises `ConfigError` where `value`, which is called `what`, is not the same on all processes."""
    for number, found in enumerate(gathered(value)):
        if found != value:
            raise ConfigError(f"{what}: {found!r} on process {number}, allowed: {value!r}, as on process {rank()}")


def compare(state: Mapping[str, Any], model: nn.Module, step: int) -> None:
    """Raises `Diverged` where `state` (nested dicts of tensors and scalars) or a buffer of `model` is not the same
    on all processes, to the bit."""
    if count() == 1:
        return
    mine = dict(_digests(state)) | dict(_digests(dict(model.named_buffers()), "buffer "))
    for number, found in enumerate(gathered(mine)):
        for name in {**mine, **found}:
            if mine.get(name) != found.get(name):
                raise Diverged(f"after step {step}, {name} is not the same on processes {rank()} and {number}")


def _digests(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _digests(value, f"{path}{'.' if path and path[-1] != ' ' else ''}{name}")
    elif isinstance(tree, torch.Tensor):
        # A copy: a tensor of one entry counts as contiguous whatever its strides are, and then has no bytes to view.
        whole = tree.detach().cpu().clone(memory_format=torch.contiguous_format).flatten()
        content = whole.view(torch.uint8).numpy().data if tree.numel() else b""
        yield path, hashlib.sha1(content, usedforsecurity=False).hexdigest() + str((*tree.shape, tree.dtype))
    else:
        yield path, repr(tree)


# -- draws ----------------------------------------------------------------------------------------


def part_ways(seed: int) -> None:
    """Gives torch's generators of every process but the first a state of their own, so that dropout differs."""
    if not is_first():
        own = np.random.SeedSequence([seed, rank()]).generate_state(1)
        torch.manual_seed(int(own[0]))


__all__ = [
    *("Diverged", "ProcessLost", "agree", "any_of", "cause", "compare", "count", "from_first", "gathered", "in_turn"),
    *("is_first", "joined", "part_ways", "rank", "sum_of", "wait"),
]
