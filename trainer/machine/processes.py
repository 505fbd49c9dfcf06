"""Several processes for one run: each trains on its part of every batch, and all have the same parameters.

    torchrun --nproc-per-node 2 train.py variant=lora task=movie

The model is not wrapped. DistributedDataParallel assigns parameters to buckets when training starts, which fails for
parameters that change their size, are added or removed, or have no gradient in a step. Gradients of adapters are small:
after the last backward pass of a step they are concatenated and summed in one all-reduce, before clipping and before
any hook of the variant. So a hook sees the same values on every process and does the same. transformers behaves as in a
single process (`trainer.machine.launch`).

    rows        `trainer.machine.batch_shards`: n processes of batch size b see the rows of one of batch size n·b
    loss        every row of a step has the same weight, on whichever process it is (`variants.core.step`)
    random      dropout differs between processes; a hook gets the random numbers of the first process
    evaluation  each process evaluates some batches; the outputs are merged in the order of a single process
    files       the first process writes, all read
    errors      an error on one process ends the run on all, and the first process reports it
    equality    parameters and the variant's state are compared at every checkpoint and at the end

CUDA devices communicate by NCCL, tensors on the CPU by Gloo. The processes need a common file system and the same kind
of hardware, because they must round in the same way.
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

TIMEOUT = datetime.timedelta(minutes=30)  # that the fastest process waits for the slowest

_store: dist.Store | None = None
_joined = 0  # number of runs so far that the processes of this launch have shared


class ProcessLost(RunFailed):
    """Another process of this run has failed or died; the message is what is known of it, in one line."""


def is_first() -> bool:
    """Whether this process is the one that writes files; a single process is."""
    return rank() == 0


@contextlib.contextmanager
def joined(divided: bool = False) -> Iterator[None]:
    """Connects the processes of a launch for one run; does nothing in a process that was started alone.

    An error on one process ends the run on all: the first process then raises `ProcessLost`, the others
    `trainer.machine.launch.FirstReports`. divided: whether the backbone may be sharded; then an error ends the
    processes, because nothing else releases the process group of a sharded weight.
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
        reason = cause(error)
        _forget(error)
        on_all = isinstance(reason, ConfigError | RunFailed | Diverged) and not isinstance(reason, ProcessLost)
        if divided and not on_all:
            sys.exit(1 if this.rank else f"error: {one_line(reason)}")
        if this.rank:
            raise launch.FirstReports(one_line(reason)) from error
        if reason is error:
            raise
        raise reason from error
    finally:
        dist.destroy_process_group()  # processes that wait for this one then fail at once


def _forget(error: BaseException | None) -> None:
    """Clears the frames of an error's traceback, because a model in one of them would keep the group's sockets open."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        traceback.clear_frames(error.__traceback__)
        seen.append(error)
        error = error.__cause__ or error.__context__
    del seen, error
    gc.collect()


def _open() -> None:
    # The default group of its functions is the group at their import. Imported during a run, they would keep the run's
    # group and its connections alive, and the other processes would wait for one whose run has failed.
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
    """The error that ended the run; `error` may only be its consequence. Shares it with the other processes."""
    if count() == 1 or isinstance(error, ProcessLost):
        return error
    assert _store is not None
    board = dist.PrefixStore(f"errors of run {_joined}", _store)
    try:
        return _shared(error, board)
    except dist.DistError:
        return ProcessLost("the process that holds the store of this run has died without a message")


def _shared(error: Exception, board: dist.Store) -> Exception:
    if type(error) is RuntimeError or isinstance(error, dist.DistError):  # the types that collectives raise
        for other in range(count()):
            if other != rank() and board.check([str(other)]):
                return ProcessLost(f"process {other}: {board.get(str(other)).decode()}")
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
            return ProcessLost("another process of this run has died without a message")
    board.set(str(rank()), one_line(error))
    return error


# -- agreement ------------------------------------------------------------------------------------


def from_first(make: Callable[[], T]) -> T:
    """The result of `make` on the first process, broadcast to all."""
    if count() == 1:
        return make()
    result = [make() if is_first() else None]
    dist.broadcast_object_list(result)
    return result[0]  # type: ignore[return-value]


def in_turn(make: Callable[[], T]) -> T:
    """The result of `make` on each process; the first process calls it before the others do."""
    if count() == 1:
        return make()
    if is_first():
        result = make()
        dist.barrier()
        return result
    dist.barrier()
    return make()


def wait() -> None:
    """Waits for all processes."""
    if count() > 1:
        dist.barrier()


def sum_of(value: int) -> int:
    """The sum of `value` over the processes."""
    return int(all_reduce_sum(torch.tensor(value))) if count() > 1 else value


def any_of(value: bool) -> bool:
    """Whether `value` is true on any process."""
    return bool(sum_of(int(value)))


def gathered(value: T) -> list[T]:
    """`value` of every process, by rank."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def agree(what: str, value: T) -> None:
    """Raises `ConfigError` if `value` differs between processes. what: its name in the error."""
    for number, other in enumerate(gathered(value)):
        if other != value:
            raise ConfigError(f"{what}: {other!r} on process {number}, allowed: {value!r}, as on process {rank()}")


def compare(state: Mapping[str, Any], model: nn.Module, step: int) -> None:
    """Raises `Diverged` if `state` (nested dicts of tensors and scalars) or a buffer of `model` is not bit-identical on
    all processes."""
    if count() == 1:
        return
    mine = dict(_digests(state)) | dict(_digests(dict(model.named_buffers()), "buffer "))
    for number, other in enumerate(gathered(mine)):
        for name in {**mine, **other}:
            if mine.get(name) != other.get(name):
                raise Diverged(f"after step {step}, {name} is not the same on processes {rank()} and {number}")


def _digests(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _digests(value, f"{path}{'.' if path and path[-1] != ' ' else ''}{name}")
    elif isinstance(tree, torch.Tensor):
        # A copy, because a tensor of one entry counts as contiguous with any strides but then can't be viewed as bytes.
        whole = tree.detach().cpu().clone(memory_format=torch.contiguous_format).flatten()
        content = whole.view(torch.uint8).numpy().data if tree.numel() else b""
        yield path, hashlib.sha1(content, usedforsecurity=False).hexdigest() + str((*tree.shape, tree.dtype))
    else:
        yield path, repr(tree)


# -- random numbers ----------------------------------------------------------------------------------------


def seed_apart(seed: int) -> None:
    """Reseeds every process but the first, so that dropout (torch) and masked spans of sounds (numpy) differ."""
    if not is_first():
        (state,) = np.random.SeedSequence([seed, rank()]).generate_state(1)
        torch.manual_seed(int(state))
        np.random.seed(int(state))


__all__ = [
    *("Diverged", "ProcessLost", "agree", "any_of", "cause", "compare", "count", "from_first", "gathered", "in_turn"),
    *("is_first", "joined", "seed_apart", "rank", "sum_of", "wait"),
]
