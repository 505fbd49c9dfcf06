"""Learning curves and the ranks of layers, for the page of each run.

A curve of more points than there is room for keeps, of every stretch, its lowest and its highest point, so that
no spike is lost; the page says how many points were logged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from analysis.records import run_files
from analysis.records.run_files import Line, Unusable
from analysis.records.runs import Run
from analysis.text.layer_grid import layout

# Points of all curves together, and the least and the most of one curve.
_POINTS, _FEWEST, _MOST = 1_000_000, 16, 200
_CURVES = 8  # of a run, roughly

_NOT_DRAWN = ("step", "epoch")
# The first curves; the others follow by name.
_FIRST = ("train/task_loss", "eval/loss", "lr", "budget/total_rank", "params/effective")


class _Pool:
    """Numbers values that many runs share, so that each is written once."""

    def __init__(self) -> None:
        self.entries: list[Any] = []
        self._numbers: dict[Any, int] = {}

    def number(self, key: Any, entry: Any) -> int:
        if key not in self._numbers:
            self._numbers[key] = len(self.entries)
            self.entries.append(entry)
        return self._numbers[key]


def curves(runs: Sequence[Run]) -> dict[str, Any]:
    """The curves of each run, or the reason why it has none.

    A curve is (name, number of its steps in `steps`, values, number of points that were logged).
    """
    steps = _Pool()
    most = min(_MOST, max(_FEWEST, _POINTS // (_CURVES * max(1, len(runs)))))
    of_runs: list[Any] = []
    for run in runs:
        try:
            lines = run_files.metrics(run.folder)
        except Unusable as error:
            of_runs.append(str(error))
            continue
        curves = []
        for name in _names(lines, run.record.metric.name):
            points = [(line["step"], line[name]) for line in lines if _number(line.get(name))]
            if points and not (name == "skipped" and not any(value for _, value in points)):
                kept = thin(points, most)
                at = tuple(step for step, _ in kept)
                values = [_short(value) for _, value in kept]
                curves.append([name, steps.number(at, at), values, len(points)])
        of_runs.append(curves or "metrics.jsonl: no numbers")
    return {"steps": steps.entries, "runs": of_runs}


def thin(points: Sequence[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """At most `most` of the points: the ends, and the lowest and highest of every section between them."""
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
    """The first and last ranks of each run by layer, with each layer's position on a map; or why there are none."""
    layouts, reasons = _Pool(), _Pool()
    of_runs: list[Any] = []
    for run in runs:
        try:
            entries = run_files.ranks(run.folder)
        except Unusable as error:
            # Without other files, the record says whether the method has ranks.
            without = run.record.rank.start is None and not (run.folder / "ranks.jsonl").exists()
            reason = f"{error}: the method has no ranks" if without else str(error)
            of_runs.append(reasons.number(reason, reason))
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
                "place": [made.position[name] for name in names],
            }
        start = [first.ranks[name] for name in names]
        of_runs.append([number, first.step, start, last.step, list(last.ranks.values()), len(entries)])
    return {"layouts": layouts.entries, "reasons": reasons.entries, "runs": of_runs}


def _names(lines: Iterable[Line], metric: str | None) -> list[str]:
    first = [f"eval/{metric}", *_FIRST] if metric else list(_FIRST)
    names = dict.fromkeys(name for line in lines for name in line if name not in _NOT_DRAWN)
    return sorted(names, key=lambda name: (first.index(name) if name in first else len(first), name))


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _short(value: float) -> float:
    """The value with five digits, which are enough for a curve."""
    short = float(f"{value:.5g}")
    return int(short) if short == int(short) and abs(short) < 1e15 else short
