"""The fields of a record. Those of a group are numbers that a run measures, None if it did not measure them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

VERSION = 2
STATUSES = ("done", "failed", "pruned")

# Groups of any names; in Python they are dictionaries.
OPEN_GROUPS = ("config", "identity", "git", "code", "versions", "hardware", "metrics", "select", "method")


@dataclass(slots=True)
class Metric:
    """The task's own metric, which tables show."""

    name: str | None = None  # as in task.metrics
    value: float | None = None  # of the reported checkpoint on `split`
    higher_is_better: bool | None = None  # false for a loss, an error or a perplexity
    split: str | None = None  # the split that it was computed on
    checkpoint: str | None = None  # "best" on the selection split, or "last"
    step: int | None = None  # optimizer step of that checkpoint
    positive: str | None = None  # the positive class of a binary f1
    percent: bool | None = None  # whether it is printed ×100, as values in −1…1 are; absent in older records


@dataclass(slots=True)
class Retention:
    """Perplexity on general texts of a language model; absent where the task asks for none."""

    before: float | None = None  # of the model as it is
    after: float | None = None  # of the model that is reported
    texts: int | None = None  # that were read


@dataclass(slots=True)
class Data:
    """Numbers of examples, after limits and splits."""

    protocol: str | None = None  # "dev" or "split"
    train: int | None = None  # the split that is trained on
    select: int | None = None  # the split on which the checkpoint was chosen
    report: int | None = None  # the split that the metric is reported on
    labels: int | None = None  # classes; 1 for a regression; absent for a kind of task without a head
    truncated: int | None = None  # examples cut at the longest length that the model takes
    classes: list[str] | None = None  # their names in the order of their ids; absent for a regression
    positive: str | None = None  # of two, the class that `metrics.f1` is of; absent where f1 is none of the metrics
    unit: str | None = None  # in which inputs are counted; absent for tokens


@dataclass(slots=True)
class Steps:
    """Numbers of optimizer steps and of passes beside them."""

    total: int | None = None  # that the run planned
    done: int | None = None  # fewer than total after early stopping
    epochs: float | None = None  # passes over the training rows
    skipped: int | None = None  # steps skipped because a gradient was not finite
    before: int | None = None  # forward passes before the first step, of a method that decides by them
    teacher: int | None = None  # forward passes of a teacher; absent without one


@dataclass(slots=True)
class Params:
    """Numbers of parameters; the head is never part of an adapter's count."""

    total: int | None = None  # backbone, adapters and head, at the start
    head: int | None = None  # the task's own modules, trained by every method
    adapter_start: int | None = None  # trainable, by real shapes
    adapter_end: int | None = None  # trainable at the end, by real shapes
    effective: int | None = None  # at the end, without parameters that a mask or rank 0 switches off
    closed_form: int | None = None  # adapter_start by the method's formula


@dataclass(slots=True)
class Rank:
    """Ranks summed over the adapted layers; absent for methods without a rank."""

    layers: int | None = None  # adapted layers
    start: int | None = None  # sum of the ranks before the first step
    end: int | None = None  # sum of the ranks of the reported model


@dataclass(slots=True)
class Memory:
    """Bytes, computed from shapes and storages; only peak_rss and CUDA's are measured.

    The first four are maxima over the run's steps. `gradients_end` and `optimizer_end` are the values of the last
    step, after ranks have changed. If several processes share a run, the largest value of any process counts.
    """

    weights: int | None = None  # a teacher's included
    gradients: int | None = None  # of all trained parameters
    optimizer: int | None = None  # the optimizer's state
    activations: int | None = None  # saved for backward by the largest training batch
    gradients_end: int | None = None  # `gradients` at the last step
    optimizer_end: int | None = None  # `optimizer` at the last step
    teacher: int | None = None  # what of `weights` is a teacher's; absent without one
    adapter_file: int | None = None  # adapter and head on disk
    peak_rss_before: int | None = None  # peak_rss at the end of the passes before the first step
    cuda_before_allocated: int | None = None  # at the peak of these passes
    peak_rss: int | None = None  # of the process, reset when the run starts
    cuda_train_allocated: int | None = None  # peak of tensors in training; absent on a CPU
    cuda_train_reserved: int | None = None  # peak of what torch holds of the device in training
    cuda_eval_allocated: int | None = None  # peak of tensors in evaluations
    cuda_eval_reserved: int | None = None  # peak of what torch holds of the device in evaluations


@dataclass(slots=True)
class Time:
    """Seconds and throughput, over all parts of an interrupted run."""

    train: float | None = None  # of the training steps
    eval: float | None = None  # of all evaluations
    before: float | None = None  # of the passes before the first step
    retention: float | None = None  # of both evaluations on general texts; not among those of eval
    tokens_per_second: float | None = None  # in training, without padding; of `data.unit` where it is another
    steps_per_second: float | None = None  # optimizer steps in training


@dataclass(slots=True)
class Files:
    """sha256 of the files that the run wrote at its end; absent in older records."""

    weights: str | None = None  # adapter/state.safetensors
    outline: str | None = None  # adapter/state.json
    predictions: str | None = None  # predictions.parquet


@dataclass(slots=True)
class Fields:
    """The fields of one run's record.

    `status` is "done", "failed" or "pruned" (stopped by a search). Only a done run has metrics; the `error` of the
    others says why they ended.
    """

    run_id: str  # the hash of `identity`: the run's name
    study: str  # the folder that the run landed in
    variant: str  # the method's name in tables
    task: str  # the task's name in tables
    model: str  # the backbone's name in tables
    seed: int  # of the run
    status: str = "done"  # done, failed or pruned
    error: str | None = None  # why a failed or pruned run ended, in one line
    version: int = VERSION  # of the record's format
    started: str | None = None  # UTC, ISO 8601
    finished: str | None = None  # UTC, ISO 8601
    overrides: list[str] = field(default_factory=list)  # as typed on the command line
    config: dict[str, Any] = field(default_factory=dict)  # every setting that affects the result, flattened
    identity: dict[str, Any] = field(default_factory=dict)  # the part of config that run_id hashes
    git: dict[str, Any] = field(default_factory=dict)  # commit, dirty
    code: dict[str, str] = field(default_factory=dict)  # variant: hash of the method's own code
    versions: dict[str, str] = field(default_factory=dict)  # python, torch, transformers, …
    hardware: dict[str, Any] = field(default_factory=dict)  # device, processor, cores, memory, threads
    metric: Metric = field(default_factory=Metric)
    metrics: dict[str, float] = field(default_factory=dict)  # every metric by name
    select: dict[str, float] = field(default_factory=dict)  # the same on the selection split, if that is not reported
    method: dict[str, float] = field(default_factory=dict)  # numbers of the method, see Variant.report
    retention: Retention = field(default_factory=Retention)
    data: Data = field(default_factory=Data)
    steps: Steps = field(default_factory=Steps)
    params: Params = field(default_factory=Params)
    rank: Rank = field(default_factory=Rank)
    memory: Memory = field(default_factory=Memory)
    time: Time = field(default_factory=Time)
    files: Files = field(default_factory=Files)
    extra: dict[str, Any] = field(default_factory=dict)  # unknown fields of a newer version


GROUPS: dict[str, type] = {
    "metric": Metric,
    "retention": Retention,
    "data": Data,
    "steps": Steps,
    "params": Params,
    "rank": Rank,
    "memory": Memory,
    "time": Time,
    "files": Files,
}

# What numbers count, by group or by name; where there is none, the value is a name, an answer or a hash.
UNITS = {
    "data": "rows",
    "data.labels": "classes",
    "files": "sha256",
    "memory": "bytes",
    "metric.step": "steps",
    "params": "parameters",
    "rank": "ranks",
    "rank.layers": "layers",
    "retention": "perplexity",
    "retention.texts": "texts",
    "steps": "steps",
    "steps.before": "passes",
    "steps.epochs": "epochs",
    "steps.teacher": "passes",
    "time": "seconds",
    "time.steps_per_second": "steps a second",
    "time.tokens_per_second": "tokens a second",
}


def unit(name: str) -> str:
    """What the number `group.field` counts; empty for a value that is none."""
    group, _, own = name.partition(".")
    is_number = name in UNITS or "str" not in str(GROUPS[group].__annotations__[own])
    return UNITS.get(name, UNITS.get(group, "")) if is_number or group == "files" else ""


# Names of the fields of the record itself, and of each group.
FIELDS = {cls: tuple(f.name for f in dataclasses.fields(cls)) for cls in (Fields, *GROUPS.values())}
