"""The schema of a run's config, the checks of its values, and the part of it that affects the result.

`variant`, `task` and `model` are plain YAML with `_target_`, so that a new one is one file.
All other fields are typed here: a misspelt name or a wrong type fails when the config is
composed. This module imports no torch, so that `--help` and a finished sweep are fast.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig

from trainer import chosen, config_checks
from trainer.config_checks import ensure
from trainer.errors import ConfigError, did_you_mean, names
from trainer.identity import PARTS, flatten
from trainer.machine import secrets
from trainer.plain import mapping

# See trainer.loop.schedules.
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt")
DTYPES = ("float32", "bfloat16", "float64")
QUANTIZE = ("int8", "nf4")  # `variants.core.quantized.HOW`, whose module imports torch
MOST_THREADS = 1024  # of torch; with many more the process dies without a message
KERNELS = ("fused", "plain")  # those of variants.core.kernels.low_rank


@dataclass
class Data:
    """Which rows are used for training, selection and reporting."""

    protocol: str = "dev"  # dev: report on validation. split: select on a part of train, report on validation
    select_share: float = 0.1  # fraction of train to select on, for protocol=split
    limit: int | None = None  # number of training rows, drawn with the run's seed; null for all
    eval_limit: int | None = None  # number of rows of each evaluation split, the same for every seed; null for all
    max_length: int = 128  # tokens; longer texts are truncated and counted


@dataclass
class Optim:
    """The optimizer and its schedule. `_target_` may name any torch optimizer."""

    lr: float = MISSING  # learning rate at the schedule's peak, of adapters, and of the head unless head_lr is set
    head_lr: float | None = None  # learning rate of the head; null for lr
    weight_decay: float = 0.0  # adapters: as their cards say; a model's own weights and the head: matrices only
    schedule: str = "linear"  # linear, cosine, constant, constant_with_warmup, polynomial or inverse_sqrt
    warmup: float = 0.06  # fraction of the steps if below 1, else a number of steps
    max_grad_norm: float = 1.0  # 0 disables clipping
    optimizer: dict[str, Any] = field(default_factory=dict)  # its `_target_` and what its class takes besides lr


@dataclass
class Train:
    """The training loop."""

    # Switches are `Any` because `bool` would accept 2; `validate` requires true or false.

    epochs: float = 3.0  # passes over the training rows
    max_steps: int | None = None  # optimizer steps; replaces epochs
    batch_size: int = 32  # rows of a batch, on each process
    accumulate: int = 1  # batches per optimizer step
    processes: int | None = None  # number that share the run, each with batch_size rows of a batch; null: as started
    eval_batch_size: int = 128  # rows of a batch in evaluations
    eval_every: Any = "epoch"  # "epoch" or a number of steps
    checkpoint: str = "best"  # the reported one: best on the selection split, or last
    early_stopping: int | None = None  # the run ends after this many evaluations without improvement
    group_by_length: Any = True  # rows of about the same length share a batch, so that less is padded
    autocast: Any = False  # bfloat16 autocast
    gradient_checkpointing: Any = False  # activations are computed again in the backward pass, not kept
    recompute: Any = False  # low-rank adapters recompute A x and the dropout mask instead of keeping them
    teacher: str | None = None  # folder of a finished run, or of a model, to learn from, too; see trainer.teacher
    temperature: float | None = None  # of both outputs where they are compared; null: 2
    distillation_weight: float | None = None  # of the distance to the teacher; the task loss has the rest; null: 0.5
    max_skipped: int = 10  # the run fails after more skipped steps, whose gradients were not finite


@dataclass
class Machine:
    """Where and how a run is carried out. It is not part of the run's identity."""

    device: str = "auto"  # auto, cpu, cuda, cuda:1
    threads: int | None = None  # of torch; null for torch's default
    kernel: str = "fused"  # of adapters and optimizer; plain: the reference in ordinary operations
    workers: int = 0  # number of processes that load data
    fsdp: Any = False  # whether the processes of a run shard the frozen backbone
    log_every: int = 10  # steps between lines of metrics.jsonl
    save_every: int = 50  # steps between checkpoints
    progress: Any = True  # a bar in the terminal
    dry_run: Any = False  # only print the predicted costs; `--dry-run` on the command line
    judge: Any = None  # the pruner, called after each evaluation; set by trainer.sweeps.search


@dataclass
class Glue:
    """Where the GLUE tasks are: null for the Hub, or a folder in the Hub's layout."""

    path: str | None = None  # that folder


@dataclass
class Config:
    """One run."""

    variant: Any = MISSING  # the method: a file of conf/variant
    task: Any = MISSING  # a file of conf/task
    model: Any = MISSING  # the backbone: a file of conf/model
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)
    seed: int = 0  # of the head's and the adapters' start, of the order and the choice of training rows, and of dropout
    study: str = "scratch"  # the folder below runs_dir that the run lands in
    init_from: str | None = None  # folder of a finished run whose adapter the run starts from; see trainer.origin
    redo: bool = False  # repeat a finished run; its old folder moves to <study>/.replaced
    skip_invalid: bool = False  # skip the runs of a sweep that have a fault and carry out the others
    runs_dir: str = "runs"  # where studies are
    machine: Machine = field(default_factory=Machine)
    tracker: Any = None  # a dashboard, by its `_target_`; not part of the run's identity
    glue: Glue = field(default_factory=Glue)


def register() -> None:
    """Registers the schema with Hydra, which `conf/config.yaml` lists in its defaults, and the resolver of rates."""
    chosen.register()
    ConfigStore.instance().store(name="schema", node=Config)


def refuse_missing(config: DictConfig) -> None:
    """Raises `ConfigError` for a required field without a value."""
    for name, value in flatten(mapping(config, resolve=False)):
        if value == MISSING:
            raise ConfigError(f"{name}: not given; set {name}=… on the command line")


def validate(config: DictConfig) -> None:
    """Raises `ConfigError` for an invalid value, with the field and what is allowed."""
    refuse_missing(config)
    _refuse_unknown(config)
    secrets.refuse(config)
    config_checks.check(config)
    data, optim, train, machine = config.data, config.optim, config.train, config.machine
    _one_of("data.protocol", data.protocol, ("dev", "split"))
    ensure("data.select_share", data.select_share, 0 < data.select_share < 1, "0 < share < 1")
    for name in ("limit", "eval_limit"):
        ensure(f"data.{name}", data[name], data[name] is None or data[name] >= 1, "a whole number ≥ 1, or null")
    ensure("data.max_length", data.max_length, data.max_length >= 2, "a whole number ≥ 2")
    ensure("optim.lr", optim.lr, optim.lr > 0, "a number > 0")
    ensure("optim.head_lr", optim.head_lr, optim.head_lr is None or optim.head_lr > 0, "a number > 0, or null")
    ensure("optim.weight_decay", optim.weight_decay, optim.weight_decay >= 0, "a number ≥ 0")
    _one_of("optim.schedule", optim.schedule, SCHEDULES)
    is_warmup = 0 <= optim.warmup < 1 or (optim.warmup >= 1 and optim.warmup == int(optim.warmup))
    ensure("optim.warmup", optim.warmup, is_warmup, "a fraction below 1, or a whole number of steps")
    ensure("optim.max_grad_norm", optim.max_grad_norm, optim.max_grad_norm >= 0, "a number ≥ 0")
    ensure("train.epochs", train.epochs, train.epochs > 0, "a number > 0")
    ensure("train.max_steps", train.max_steps, train.max_steps is None or train.max_steps >= 1, "≥ 1, or null")
    for name in ("batch_size", "accumulate", "eval_batch_size"):
        ensure(f"train.{name}", train[name], train[name] >= 1, "a whole number ≥ 1")
    every = train.eval_every
    is_steps = isinstance(every, int) and not isinstance(every, bool) and every >= 1
    ensure("train.eval_every", every, every == "epoch" or is_steps, '"epoch" or a number of steps ≥ 1')
    _one_of("train.checkpoint", train.checkpoint, ("best", "last"))
    stopping = train.early_stopping
    ensure("train.early_stopping", stopping, stopping is None or stopping >= 1, "a whole number ≥ 1, or null")
    ensure("train.processes", train.processes, train.processes is None or train.processes >= 1, "≥ 1, or null")
    warm = train.temperature is None or train.temperature > 0
    ensure("train.temperature", train.temperature, warm, "a number > 0, or null")
    weight = train.distillation_weight
    ensure("train.distillation_weight", weight, weight is None or 0 < weight <= 1, "0 < weight ≤ 1, or null")
    ensure("train.max_skipped", train.max_skipped, train.max_skipped >= 0, "a whole number ≥ 0")
    threads = machine.threads
    ensure("machine.threads", threads, threads is None or 1 <= threads <= MOST_THREADS, f"1 … {MOST_THREADS}, or null")
    ensure("machine.workers", machine.workers, machine.workers >= 0, "a whole number ≥ 0")
    for name in ("log_every", "save_every"):
        ensure(f"machine.{name}", machine[name], machine[name] >= 1, "a whole number ≥ 1")
    _one_of("machine.kernel", machine.kernel, KERNELS)
    for group, schema in (("train", Train), ("machine", Machine)):
        for switch in (f.name for f in dataclasses.fields(schema) if isinstance(f.default, bool)):
            value = config[group][switch]
            ensure(f"{group}.{switch}", value, isinstance(value, bool), "true, false")
    if train.recompute and machine.kernel == "plain":
        raise ConfigError(
            "train.recompute: true with machine.kernel: plain, allowed: false; autograd decides what it keeps"
        )
    device = machine.device
    known = device in ("auto", "cpu", "cuda") or re.fullmatch(r"cuda:\d+", device)
    ensure("machine.device", device, known, "auto, cpu, cuda, cuda:N")
    ensure("seed", config.seed, 0 <= config.seed < 2**32, "0 ≤ seed < 2³²")
    study = config.study
    is_folder = study.strip() and study.isprintable() and study != ".." and Path(study).name == study
    ensure("study", study, is_folder, "the name of a folder")
    is_place = config.runs_dir.strip() and "://" not in config.runs_dir
    ensure("runs_dir", config.runs_dir, is_place, "a folder, see docs/scale.md for object storage")
    _one_of("model.dtype", config.model.get("dtype"), DTYPES)
    dropout = config.model.get("dropout")
    number = isinstance(dropout, int | float) and not isinstance(dropout, bool)
    ensure("model.dropout", dropout, dropout is None or (number and 0 <= dropout < 1), "0 ≤ dropout < 1, or null")
    keep = config.model.get("keep_head")
    ensure("model.keep_head", keep, keep is None or keep is True, "true, null")
    quantize = config.model.get("quantize")
    ensure("model.quantize", quantize, quantize in (None, *QUANTIZE), f"{', '.join(QUANTIZE)}, null")


def _refuse_unknown(config: DictConfig) -> None:
    """Raises `ConfigError` for a field outside the schema: `+` can add any, and it would have no effect."""
    groups = {"data": Data, "optim": Optim, "train": Train, "machine": Machine, "glue": Glue}
    for group, schema in {"": Config, **groups}.items():
        allowed = [f.name for f in dataclasses.fields(schema)]
        for name in map(str, config[group] if group else config):
            if name not in allowed and name != "hydra":
                key = f"{group}{'.' * bool(group)}{name}"
                hint = did_you_mean(key, names(config))
                raise ConfigError(f"{key}: no such field, allowed: {', '.join(allowed)}{hint}")


def defaults() -> dict[str, Any]:
    """Defaults, by dotted name, of the schema's fields that affect the result."""
    values_by_name: dict[str, Any] = {"model.dtype": "float32"}
    for group, schema in (("data", Data), ("optim", Optim), ("train", Train)):
        values = ((f.name, f.default) for f in dataclasses.fields(schema))
        values_by_name |= {
            f"{group}.{name}": value for name, value in values if value not in (MISSING, dataclasses.MISSING)
        }
    return values_by_name


def deciding(config: DictConfig) -> dict[str, Any]:
    """The parts of a config that affect the result, as plain values."""
    parts = mapping(config)
    del parts["model"]["sources"]  # the mirror that the files came from does not matter
    if parts["variant"].get("ranks_from") is not None:
        del parts["variant"]["ranks_from"]  # the name of that run is in its place, see trainer.sweeps.found_ranks
    if parts["train"]["teacher"] is not None:
        del parts["train"]["teacher"]  # its content is in its place, see trainer.teacher
    return {name: parts[name] for name in PARTS}


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    ensure(name, value, value in allowed, ", ".join(allowed))
