"""Rows for a dashboard, computed from a run's record and ranks.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Groups of the record whose numbers appear on a dashboard as `group/name`.
FINAL = ("metric", "metrics", "select", "method", "params", "rank", "memory", "steps", "time")


def of_ranks(line: Mapping[str, Any]) -> dict[str, Any]:
    """Minimum, mean and maximum over the layers of a line of ranks.jsonl, as a row."""
    ranks = list(line["ranks"].values())
    return {
        "step": line["step"],
        "ranks/min": min(ranks),
        "ranks/mean": sum(ranks) / len(ranks),
        "ranks/max": max(ranks),
    }


def final(record: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a record as a row: `params/effective`, `memory/optimizer`, `metric/value`, …"""
    numbers = {}
    for name, value in record.items():
        group, _, rest = name.partition(".")
        if rest and group in FINAL and isinstance(value, int | float) and not isinstance(value, bool):
            numbers[f"{group}/{rest}"] = value
    return numbers


def nested(record: Mapping[str, Any]) -> dict[str, Any]:
    """A flat row with dotted names as nested dicts."""
    tree: dict[str, Any] = {}
    for name, value in record.items():
        *path, last = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def by_layer(lines: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
    """[step, layer, rank] for every layer and allocation."""
    return [[line["step"], layer, rank] for line in lines for layer, rank in line["ranks"].items()]
