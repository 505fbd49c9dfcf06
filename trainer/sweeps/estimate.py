"""Estimates how long the runs of a sweep take from those that are done. Imports no torch."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from statistics import mean

from omegaconf import DictConfig

from trainer.record import Record


class Durations:
    """Seconds of finished runs by variant and task. The mean over all stands in for a pair without a finished run."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str], list[float]] = {}

    def add(self, kind: tuple[str, str], seconds: float) -> None:
        self._seconds.setdefault(kind, []).append(seconds)

    def take(self, record: Record) -> None:
        """Adds the duration of a finished run. For an interrupted run it is the sum over its parts."""
        if record.started and record.finished and record.time.train is not None and record.time.eval is not None:
            begun, ended = (datetime.datetime.fromisoformat(text) for text in (record.started, record.finished))
            seconds = max((ended - begun).total_seconds(), record.time.train + record.time.eval)
            self.add((record.variant, record.task), seconds)

    def expected(self, kinds: Iterable[tuple[str, str]]) -> float | None:
        """Seconds that runs of these kinds take one after the other; None if no run has finished."""
        if not self._seconds:
            return None
        overall = mean(mean(seconds) for seconds in self._seconds.values())
        return sum(mean(self._seconds[kind]) if kind in self._seconds else overall for kind in kinds)


def kind(config: DictConfig) -> tuple[str, str]:
    """The key by which durations are grouped: variant and task."""
    return config.variant.name, config.task.name


def words(seconds: float) -> str:
    """A rounded duration: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
