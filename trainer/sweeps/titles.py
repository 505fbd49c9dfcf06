"""What the runs of a sweep are called: each by that in which it differs from the others. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

NAMED = ("variant", "task", "seed")  # told by every title


class Titles:
    """Titles of the runs in `jobs`, one list of overrides each."""

    def __init__(self, jobs: Sequence[Sequence[str]]) -> None:
        self._jobs = jobs
        values: dict[str, set[str]] = {}
        for job in jobs:
            for key, value in _fields(job).items():
                values.setdefault(key, set()).add(value)
        self._varying = [key for key, found in values.items() if len(found) > 1]
        self._short = Counter(_last(key, ".") for key in self._varying)
        # variant=families/name is "name", unless another choice is called so, too.
        self._called = {key: Counter(_last(value, "/") for value in values.get(key, ())) for key in NAMED}

    def setting(self, number: int, config: DictConfig | None) -> str:
        """The run in place `number` without its seed. config: None where it can't be composed."""
        fields = _fields(self._jobs[number])
        if config is None:
            said = [key for key in self._varying if key in fields and key != "seed"]
            return " ".join(f"{key}={fields[key]}" for key in said or fields)
        names = {"variant": config.variant.get("name"), "task": config.task.get("name")}
        own = [key for key in self._varying if key in fields and self._tells(key, fields, names)]
        return " ".join([f"{names['variant']}", *(self._field(key, fields[key]) for key in own), f"on {names['task']}"])

    def label(self, number: int, config: DictConfig) -> str:
        """What the run in place `number` is called on a terminal."""
        place = f"[{number + 1}/{len(self._jobs)}]"
        return f"{place} {self.setting(number, config)}, seed {config.seed}"

    def _tells(self, key: str, fields: Mapping[str, str], names: Mapping[str, str | None]) -> bool:
        if key not in NAMED:
            return True
        tail = _last(fields[key], "/")
        return key != "seed" and (tail != names[key] or self._called[key][tail] > 1)

    def _field(self, key: str, value: str) -> str:
        short = _last(key, ".")
        return f"{short if self._short[short] == 1 else key}={value}"


@dataclass(frozen=True)
class Fault:
    """Why a run can't be. setting: as `Titles.setting`. seed: None where it is not known."""

    setting: str
    seed: int | None
    line: str


def lines(faults: Iterable[Fault]) -> Iterator[str]:
    """One line for each setting and what is wrong with it; its seeds share one."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for fault in faults:
        found = seeds.setdefault((fault.setting, fault.line), [])
        found += [] if fault.seed is None else [fault.seed]
    for (setting, line), those in seeds.items():
        said = f", seed{'s' if len(those) > 1 else ''} {', '.join(map(str, those))}" if those else ""
        yield f"{setting}{said}: {line}"


def _fields(job: Iterable[str]) -> dict[str, str]:
    parts = (text.lstrip("+~").partition("=") for text in job)
    return {key: value for key, _, value in parts}


def _last(text: str, mark: str) -> str:
    return text.rpartition(mark)[2]
