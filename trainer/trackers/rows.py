"""What is made of a run's files for a dashboard, beside the lines of metrics.jsonl themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Groups of the record whose numbers stand on a dashboard as `group/name`.
FINAL = ("metric", "metrics", "method", "params", "rank", "memory", "steps", "time")


def of_ranks(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of ranks.jsonl as a row: how the ranks are spread over the layers."""
    ranks = list(line["ranks"].values())
    return {
        "step": line["step"],
        "ranks/min": min(ranks),
        "ranks/mean": sum(ranks) / len(ranks),
        "ranks/max": max(ranks),
    }


def final(record: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a record as a row: `params/effective`, `memory/optimizer`, `metric/value`, …"""
    found = {}
    for name, value in record.items():
        group, _, rest = name.partition(".")
        if rest and group in FINAL and isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{group}/{rest}"] = value
    return found


def nested(record: Mapping[str, Any]) -> dict[str, Any]:
    """The tree that a flat row's dotted names stand for."""
    tree: dict[str, Any] = {}
    for name, value in record.items():
        *path, last = name.split(".")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return tree


def by_layer(lines: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
    """[step, layer, rank] for every layer at every allocation."""
    return [[line["step"], layer, rank] for line in lines for layer, rank in line["ranks"].items()]
