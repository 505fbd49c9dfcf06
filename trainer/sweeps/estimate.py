"""How long the runs of a sweep take, by those that are done. Imports no torch."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from statistics import mean

from omegaconf import DictConfig

from trainer.record import Record


class Durations:
    """Seconds of finished runs, by variant and task; what is asked for and not there is the mean of all."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str], list[float]] = {}

    def add(self, kind: tuple[str, str], seconds: float) -> None:
        self._seconds.setdefault(kind, []).append(seconds)

    def take(self, record: Record) -> None:
        """Counts a finished run; one that was interrupted took as long as its parts."""
        if record.started and record.finished and record.time.train is not None and record.time.eval is not None:
            begun, ended = (datetime.datetime.fromisoformat(text) for text in (record.started, record.finished))
            in_all = max((ended - begun).total_seconds(), record.time.train + record.time.eval)
            self.add((record.variant, record.task), in_all)

    def expected(self, kinds: Iterable[tuple[str, str]]) -> float | None:
        """Seconds that runs of these kinds take one after the other; None where nothing is known."""
        if not self._seconds:
            return None
        everything = mean(mean(found) for found in self._seconds.values())
        return sum(mean(self._seconds[kind]) if kind in self._seconds else everything for kind in kinds)


def kind(config: DictConfig) -> tuple[str, str]:
    """By what durations are told apart."""
    return config.variant.name, config.task.name


def words(seconds: float) -> str:
    """About how long: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
