"""Reads the logs and truncation.json of a run's folder. The formats are in `runs/README.md`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from trainer.hashing import sha256 as digest


class Unusable(Exception):
    """A file that a figure needs is missing or can't be trusted. The message is one line without the run."""


Line = dict[str, Any]


def metrics(folder: Path) -> list[Line]:
    """The lines of `metrics.jsonl`. Raises `Unusable`."""
    return _journal(folder / "metrics.jsonl")


@dataclass(frozen=True)
class Ranks:
    """The ranks of all layers from a step on."""

    step: int
    ranks: dict[str, int]  # by layer, in the model's order


def ranks(folder: Path) -> list[Ranks]:
    """The allocations in `ranks.jsonl`, at least one. Raises `Unusable`."""
    path = folder / "ranks.jsonl"
    if not path.exists():
        raise Unusable("no ranks.jsonl")
    allocations: list[Ranks] = []
    for line in _journal(path):
        entry = line.get("ranks")
        if not isinstance(entry, dict) or not entry or not all(_whole(rank) for rank in entry.values()):
            raise Unusable(f"ranks.jsonl: the line of step {line['step']} has no ranks of layers")
        allocations.append(Ranks(line["step"], entry))
    if not allocations:
        raise Unusable("ranks.jsonl: empty")
    if len({frozenset(entry.ranks) for entry in allocations}) > 1:
        raise Unusable("ranks.jsonl: its lines are about different layers")
    return allocations


@dataclass(frozen=True)
class Kept:
    """A model whose ΔW was truncated to `rank` in every layer. rank: None for the model as trained."""

    rank: int | None
    metric: float
    relative_error: float  # of the ΔW of all layers, as one matrix
    parameters: int  # of its factors


_TRUNCATION_VERSION = 1


def truncation(folder: Path) -> tuple[Kept, list[Kept]]:
    """The model as trained, and truncated to rising ranks, from `truncation.json`. Raises `Unusable`."""
    try:
        content = json.loads((folder / "truncation.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Unusable("no truncation.json: the run was not evaluated at lower ranks") from None
    except (OSError, ValueError) as error:
        raise Unusable(f"truncation.json: can't be read ({_reason(error)})") from None
    if not isinstance(content, dict) or content.get("version") != _TRUNCATION_VERSION:
        version = content.get("version") if isinstance(content, dict) else None
        raise Unusable(f"truncation.json: version {version!r}, this is version {_TRUNCATION_VERSION}")
    metric, cuts = content.get("metric"), content.get("cut")
    if not isinstance(cuts, list) or not cuts:
        raise Unusable("truncation.json: cut: no evaluations at lower ranks")
    trained = _kept("trained", {"rank": None, **_object("trained", content.get("trained"))}, metric)
    entries = [_kept(f"cut[{number}]", _object(f"cut[{number}]", entry), metric) for number, entry in enumerate(cuts)]
    for number, entry in enumerate(entries):
        if entry.rank is None or entry.rank in {other.rank for other in entries[:number]}:
            raise Unusable(f"truncation.json: cut[{number}].rank: {entry.rank!r} is not a new whole number")
    return trained, sorted(entries, key=lambda entry: entry.rank or 0)


def _object(what: str, entry: Any) -> Line:
    if not isinstance(entry, dict):
        raise Unusable(f"truncation.json: {what}: {entry!r} is no object")
    return entry


def _kept(what: str, entry: Line, metric: Any) -> Kept:
    """One entry. Fields that are not used here are not checked."""
    rank, values = entry.get("rank"), _object(f"{what}.metrics", entry.get("metrics"))
    value, error, parameters = values.get(metric), entry.get("relative_error"), entry.get("parameters")
    if rank is not None and not _whole(rank):
        raise Unusable(f"truncation.json: {what}.rank: {rank!r} is not a whole number")
    if not _number(value):
        raise Unusable(f"truncation.json: {what}.metrics.{metric}: {value!r} is not a finite number")
    if not _number(error):
        raise Unusable(f"truncation.json: {what}.relative_error: {error!r} is not a finite number")
    if not _whole(parameters):
        raise Unusable(f"truncation.json: {what}.parameters: {parameters!r} is not a whole number")
    return Kept(rank, float(value), float(error), parameters)


def _journal(path: Path) -> list[Line]:
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise Unusable(f"no {path.name}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Unusable(f"{path.name}: can't be read ({_reason(error)})") from None
    lines: list[Line] = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except ValueError:
            raise Unusable(f"{path.name}: line {number} is no JSON") from None
        if not isinstance(line, dict) or not _whole(line.get("step")):
            raise Unusable(f"{path.name}: line {number} has no step")
        if lines and line["step"] < lines[-1]["step"]:
            raise Unusable(f"{path.name}: line {number} goes back to step {line['step']}")
        lines.append(line)
    return lines


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


__all__ = ["Kept", "Line", "Ranks", "Unusable", "digest", "metrics", "ranks", "truncation"]
