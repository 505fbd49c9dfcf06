"""The fields of a record, by groups; the groups of measured numbers are in `record_parts`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from trainer.record_parts import Data, Files, Memory, Metric, Params, Rank, Steps, Time

VERSION = 2
STATUSES = ("done", "failed", "pruned")

# Groups of any names; in Python they are dictionaries.
OPEN_GROUPS = ("config", "identity", "git", "code", "versions", "hardware", "metrics", "method")


@dataclass(slots=True)
class Fields:
    """The fields of one run's record.

    `status` is "done", "failed" or "pruned" (stopped by a search). Only a done run has metrics; the `error` of the
    others says why they ended.
    """

    run_id: str
    study: str
    variant: str
    task: str
    model: str
    seed: int
    status: str = "done"
    error: str | None = None
    version: int = VERSION
    started: str | None = None  # UTC, ISO 8601
    finished: str | None = None
    overrides: list[str] = field(default_factory=list)  # as typed on the command line
    config: dict[str, Any] = field(default_factory=dict)  # every setting that affects the result, flattened
    identity: dict[str, Any] = field(default_factory=dict)  # the part of config that run_id hashes
    git: dict[str, Any] = field(default_factory=dict)  # commit, dirty
    code: dict[str, str] = field(default_factory=dict)  # variant: hash of the method's own code
    versions: dict[str, str] = field(default_factory=dict)  # python, torch, transformers, …
    hardware: dict[str, Any] = field(default_factory=dict)
    metric: Metric = field(default_factory=Metric)
    metrics: dict[str, float] = field(default_factory=dict)  # every metric by name
    method: dict[str, float] = field(default_factory=dict)  # numbers of the method, see Variant.report
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
    "data": Data,
    "steps": Steps,
    "params": Params,
    "rank": Rank,
    "memory": Memory,
    "time": Time,
    "files": Files,
}

# Names of the fields of the record itself, and of each group.
FIELDS = {cls: tuple(f.name for f in dataclasses.fields(cls)) for cls in (Fields, *GROUPS.values())}
