"""Which code, libraries, machines and protocols the runs were made with, and which of these are mixed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from analysis.records import settings
from analysis.text.phrases import names, runs
from trainer.record import Record

if TYPE_CHECKING:
    from analysis.records.grouping import Point

_TITLES = {"versions": "Mixed library versions", "hardware": "Mixed hardware"}


class Provenance:
    """Numbers of runs by code, libraries and hardware."""

    def __init__(self) -> None:
        self._total = 0
        self._dirty = 0
        self._commits: Counter[str] = Counter()
        self._values: dict[str, dict[str, set[str]]] = {group: defaultdict(set) for group in _TITLES}

    @classmethod
    def of(cls, records: Iterable[Record]) -> Provenance:
        """The provenance of records."""
        # Most runs share these dictionaries, so that few have to be read.
        groups: Counter[tuple[int, int, int]] = Counter()
        some: dict[tuple[int, int, int], Record] = {}
        for record in records:
            key = (id(record.git), id(record.versions), id(record.hardware))
            groups[key] += 1
            some.setdefault(key, record)
        provenance = cls()
        for key, times in groups.items():
            provenance.add(some[key].git, some[key].versions, some[key].hardware, times)
        return provenance

    def __len__(self) -> int:
        """The number of runs."""
        return self._total

    def add(
        self, git: Mapping[str, Any], versions: Mapping[str, Any], hardware: Mapping[str, Any], times: int = 1
    ) -> None:
        """Adds `times` runs that were made with these."""
        self._total += times
        self._dirty += times * bool(git.get("dirty"))
        self._commits[git.get("commit") or ""] += times
        for group, entries in (("versions", versions), ("hardware", hardware)):
            for name, value in entries.items():
                if value is not None:
                    self._values[group][name].add(settings.text(value))

    @property
    def one_commit(self) -> bool:
        """Whether all runs have the same commit, which may be none."""
        return len(self._commits) == 1

    def code(self, cells: Mapping[str, Sequence[str]] | None = None) -> tuple[str, bool]:
        """A sentence with the commits, and whether it is a problem: several commits, none, or a dirty tree.

        cells: by commit ("" for none) the names of the cells with its runs; shown for all but the commonest of several.
        """
        changed = ""
        if self._dirty:
            changed = f"; {runs(self._dirty)} of {self._total} from a tree with uncommitted changes"
        if self.one_commit:
            (commit,) = self._commits
            return f"Code: {_commit(commit)}{changed}.", bool(self._dirty) or not commit
        return f"Mixed code in one comparison: {counted(self._commits, cells or {}, _commit)}{changed}.", True

    def mixed(self) -> Iterator[str]:
        """One sentence for each of library versions and hardware if runs differ in them."""
        for group, title in _TITLES.items():
            values = sorted(self._values[group].items())
            parts = [f"{name} {names(different)}" for name, different in values if len(different) > 1]
            if parts:
                yield f"{title} in one comparison: {'; '.join(parts)}."


def unequal(done: Iterable[Point]) -> Iterator[str]:
    """One sentence for each task whose done runs differ in a setting of `settings.COMPARABLE`."""
    protocols: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for point in done:
        for name, value in zip(settings.COMPARABLE, point.protocol, strict=False):
            protocols[point.task][name][settings.text(value)] += len(point.runs)
    for task, protocol in sorted(protocols.items()):
        parts = []
        for name, counts in protocol.items():
            if len(counts) > 1:
                listed = ", ".join(f"{value} ({runs(n)})" for value, n in sorted(counts.items()))
                parts.append(f"{settings.short(name)} {listed}")
        if parts:
            yield f"Unequal protocols on {task}: {'; '.join(parts)}."


def counted(counts: Mapping[str, int], cells: Mapping[str, Sequence[str]], text: Callable[[str], str]) -> str:
    """`A (9 runs), B (1 run: lora on movie)`: each value with its number of runs, rare ones with their cells."""
    commonest = max(sorted(counts), key=lambda value: counts[value])
    parts = []
    for value, number in sorted(counts.items()):
        where = f": {names(cells[value])}" if value != commonest and cells.get(value) else ""
        parts.append(f"{text(value)} ({runs(number)}{where})")
    return ", ".join(parts)


def _commit(commit: str) -> str:
    return f"commit {commit[:10]}" if commit else "commit not recorded"
