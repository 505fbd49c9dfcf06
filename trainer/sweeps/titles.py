"""Titles of the runs of a sweep: each names the fields in which the runs differ. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

NAMED = ("variant", "task", "seed")  # part of every title


class Titles:
    """Titles of the runs in `jobs`, one list of overrides each."""

    def __init__(self, jobs: Sequence[Sequence[str]]) -> None:
        self._jobs = jobs
        values: dict[str, set[str]] = {}
        for job in jobs:
            for key, value in _fields(job).items():
                values.setdefault(key, set()).add(value)
        self._varying = [key for key, distinct in values.items() if len(distinct) > 1]
        self._short = Counter(_last(key, ".") for key in self._varying)
        # variant=families/name is called "name" unless another choice has the same name.
        self._called = {key: Counter(_last(value, "/") for value in values.get(key, ())) for key in NAMED}

    def setting(self, number: int, config: DictConfig | None) -> str:
        """The title of a run without its seed. config: None if it can't be composed."""
        fields = _fields(self._jobs[number])
        if config is None:
            varying = [key for key in self._varying if key in fields and key != "seed"]
            return " ".join(f"{key}={fields[key]}" for key in varying or fields)
        names = {"variant": config.variant.get("name"), "task": config.task.get("name")}
        shown = [key for key in self._varying if key in fields and self._is_shown(key, fields, names)]
        return " ".join(
            [f"{names['variant']}", *(self._field(key, fields[key]) for key in shown), f"on {names['task']}"]
        )

    def label(self, number: int, config: DictConfig) -> str:
        """The title of a run on a terminal, with its number in the sweep and its seed."""
        position = f"[{number + 1}/{len(self._jobs)}]"
        return f"{position} {self.setting(number, config)}, seed {config.seed}"

    def _is_shown(self, key: str, fields: Mapping[str, str], names: Mapping[str, str | None]) -> bool:
        if key not in NAMED:
            return True
        tail = _last(fields[key], "/")
        return key != "seed" and (tail != names[key] or self._called[key][tail] > 1)

    def _field(self, key: str, value: str) -> str:
        short = _last(key, ".")
        return f"{short if self._short[short] == 1 else key}={value}"


@dataclass(frozen=True)
class Fault:
    """Why a run is refused, in one line. setting: as `Titles.setting` returns it. seed: None if it is not known."""

    setting: str
    seed: int | None
    line: str


def lines(faults: Iterable[Fault]) -> Iterator[str]:
    """One line for each setting and fault; the seeds of a setting share a line."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for fault in faults:
        known = seeds.setdefault((fault.setting, fault.line), [])
        known += [] if fault.seed is None else [fault.seed]
    for (setting, line), known in seeds.items():
        listed = f", seed{'s' if len(known) > 1 else ''} {', '.join(map(str, known))}" if known else ""
        yield f"{setting}{listed}: {line}"


def _fields(job: Iterable[str]) -> dict[str, str]:
    parts = (text.lstrip("+~").partition("=") for text in job)
    return {key: value for key, _, value in parts}


def _last(text: str, mark: str) -> str:
    return text.rpartition(mark)[2]
