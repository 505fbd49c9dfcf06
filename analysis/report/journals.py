"""Learning curves and the ranks of layers, for the page of each run.

A curve of more points than there is room for keeps, of every stretch, its lowest and its highest point, so that
no spike is lost; the page says how many points were logged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from analysis.plots.layer_grid import layout
from analysis.records import run_files
from analysis.records.run_files import Line, Unusable
from analysis.records.runs import Run

# Of all points in one file, and the fewest and the most of one curve.
_POINTS, _FEWEST, _MOST = 1_000_000, 16, 200
_CURVES = 8  # that a run has, about

_NOT_DRAWN = ("step", "epoch")
# What a reader looks at first; then the others by name.
_FIRST = ("train/task_loss", "eval/loss", "lr", "budget/total_rank", "params/effective")


class _Pool:
    """Things that many runs have in common, each once."""

    def __init__(self) -> None:
        self.entries: list[Any] = []
        self._numbers: dict[Any, int] = {}

    def number(self, key: Any, entry: Any) -> int:
        if key not in self._numbers:
            self._numbers[key] = len(self.entries)
            self.entries.append(entry)
        return self._numbers[key]


def curves(runs: Sequence[Run]) -> dict[str, Any]:
    """For each run its curves, or why it has none.

    A curve is (name, number of its steps in `steps`, values, number of points that were logged).
    """
    steps = _Pool()
    most = min(_MOST, max(_FEWEST, _POINTS // (_CURVES * max(1, len(runs)))))
    found: list[Any] = []
    for run in runs:
        try:
            lines = run_files.metrics(run.folder)
        except Unusable as error:
            found.append(str(error))
            continue
        own = []
        for name in _names(lines, run.record.metric.name):
            points = [(line["step"], line[name]) for line in lines if _number(line.get(name))]
            if points and not (name == "skipped" and not any(value for _, value in points)):
                kept = thin(points, most)
                places = tuple(step for step, _ in kept)
                values = [_short(value) for _, value in kept]
                own.append([name, steps.number(places, places), values, len(points)])
        found.append(own or "metrics.jsonl: no numbers")
    return {"steps": steps.entries, "runs": found}


def thin(points: Sequence[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """At most `most` of the points: the ends, and of every stretch between them the lowest and the highest."""
    if len(points) <= most:
        return list(points)
    inner = range(1, len(points) - 1)
    stretches = max(1, (most - 2) // 2)
    kept = {0, len(points) - 1}
    for number in range(stretches):
        stretch = inner[number * len(inner) // stretches : (number + 1) * len(inner) // stretches]
        kept |= {min(stretch, key=lambda k: points[k][1]), max(stretch, key=lambda k: points[k][1])}
    return [points[k] for k in sorted(kept)]


def ranks(runs: Sequence[Run]) -> dict[str, Any]:
    """For each run its first and its last ranks by layer, and where each layer is on a map, or why not."""
    layouts, reasons = _Pool(), _Pool()
    found: list[Any] = []
    for run in runs:
        try:
            entries = run_files.ranks(run.folder)
        except Unusable as error:
            # A record that lies alone says itself whether the method has ranks.
            missing = run.record.rank.start is not None and not (run.folder / "ranks.jsonl").exists()
            reason = "no ranks.jsonl" if missing else str(error)
            found.append(reasons.number(reason, reason))
            continue
        first, last = entries[0], entries[-1]
        names = tuple(last.ranks)
        number = layouts.number(names, None)
        if layouts.entries[number] is None:
            made = layout(names)
            layouts.entries[number] = {
                "layers": names,
                "modules": made.modules,
                "blocks": made.block_labels,
                "place": [made.place[name] for name in names],
            }
        start = [first.ranks[name] for name in names]
        found.append([number, first.step, start, last.step, list(last.ranks.values()), len(entries)])
    return {"layouts": layouts.entries, "reasons": reasons.entries, "runs": found}


def _names(lines: Iterable[Line], metric: str | None) -> list[str]:
    first = [f"eval/{metric}", *_FIRST] if metric else list(_FIRST)
    names = dict.fromkeys(name for line in lines for name in line if name not in _NOT_DRAWN)
    return sorted(names, key=lambda name: (first.index(name) if name in first else len(first), name))


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _short(value: float) -> float:
    """Five digits: more than a curve shows."""
    short = float(f"{value:.5g}")
    return int(short) if short == int(short) and abs(short) < 1e15 else short
