"""Where runs come from: code, libraries, machines and protocols, and what of it is mixed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from analysis.records import settings
from analysis.text.phrases import names, runs
from trainer.record import Record

_TITLES = {"versions": "Mixed library versions", "hardware": "Mixed hardware"}


class Provenance:
    """Counts runs by what they were made with."""

    def __init__(self) -> None:
        self._total = 0
        self._dirty = 0
        self._commits: Counter[str] = Counter()
        self._values: dict[str, dict[str, set[str]]] = {group: defaultdict(set) for group in _TITLES}
        # By task, then by setting of settings.COMPARABLE: how many runs have which value.
        self._protocols: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))

    @classmethod
    def of(cls, records: Iterable[Record]) -> Provenance:
        """The provenance of records, without their protocols."""
        # Most runs share these dictionaries: few are looked into.
        groups: Counter[tuple[int, int, int]] = Counter()
        some: dict[tuple[int, int, int], Record] = {}
        for record in records:
            key = (id(record.git), id(record.versions), id(record.hardware))
            groups[key] += 1
            some.setdefault(key, record)
        found = cls()
        for key, times in groups.items():
            found.add(some[key].git, some[key].versions, some[key].hardware, times)
        return found

    def __len__(self) -> int:
        """How many runs were counted."""
        return self._total

    def add(
        self, git: Mapping[str, Any], versions: Mapping[str, Any], hardware: Mapping[str, Any], times: int = 1
    ) -> None:
        """`times` runs that were made so."""
        self._total += times
        self._dirty += times * bool(git.get("dirty"))
        self._commits[git.get("commit") or ""] += times
        for group, entries in (("versions", versions), ("hardware", hardware)):
            for name, value in entries.items():
                if value is not None:
                    self._values[group][name].add(settings.text(value))

    def add_protocol(self, task: str, protocol: Sequence[Any], times: int = 1) -> None:
        """`times` done runs of a task that reported this, as `settings.protocol` has it."""
        for name, value in zip(settings.COMPARABLE, protocol, strict=False):
            self._protocols[task][name][settings.text(value)] += times

    def code(self, cells: Mapping[str, Sequence[str]] | None = None) -> tuple[str, bool]:
        """The commits as a sentence, and whether something is wrong: more than one, none, or a dirty tree.

        cells: by commit ("" for none) the names of the cells that have runs of it; said of all but the commonest.
        """
        changed = ""
        if self._dirty:
            changed = f"; {runs(self._dirty)} of {self._total} from a tree with uncommitted changes"
        if len(self._commits) == 1:
            (commit,) = self._commits
            return f"Code: {_commit(commit)}{changed}.", bool(self._dirty) or not commit
        return f"Mixed code in one comparison: {counted(self._commits, cells or {}, _commit)}{changed}.", True

    def mixed(self) -> Iterator[str]:
        """Library versions and machines: numbers and times of different ones are hard to compare."""
        for group, title in _TITLES.items():
            values = sorted(self._values[group].items())
            parts = [f"{name} {names(found)}" for name, found in values if len(found) > 1]
            if parts:
                yield f"{title} in one comparison: {'; '.join(parts)}."

    def unequal(self) -> Iterator[str]:
        """What must be the same for the runs of one task to be compared, and is not."""
        for task, protocol in sorted(self._protocols.items()):
            parts = []
            for name, found in protocol.items():
                if len(found) > 1:
                    listed = ", ".join(f"{value} ({runs(n)})" for value, n in sorted(found.items()))
                    parts.append(f"{settings.short(name)} {listed}")
            if parts:
                yield f"Unequal protocols on {task}: {'; '.join(parts)}."


def counted(found: Mapping[str, int], cells: Mapping[str, Sequence[str]], text: Callable[[str], str]) -> str:
    """`A (9 runs), B (1 run: lora on movie)`: values by number of runs, with the cells of all but the commonest."""
    commonest = max(sorted(found), key=lambda value: found[value])
    parts = []
    for value, number in sorted(found.items()):
        where = f": {names(cells[value])}" if value != commonest and cells.get(value) else ""
        parts.append(f"{text(value)} ({runs(number)}{where})")
    return ", ".join(parts)


def _commit(commit: str) -> str:
    return f"commit {commit[:10]}" if commit else "commit not recorded"
