"""What a kind of figure is: it looks at the runs and says what can be drawn of them, and what can't."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from matplotlib.figure import Figure

from analysis.plots import style
from analysis.records.run_files import Unusable
from analysis.records.runs import Run, RunSet
from analysis.tables import cells as grid
from analysis.tables import rows
from analysis.tables.cells import Cell, Column, Grid
from analysis.tables.rows import Row, Rows

T = TypeVar("T")


@dataclass(frozen=True)
class Picture:
    """One figure that can be drawn. name: of its files, without an ending. caption: what a reader must know."""

    name: str
    caption: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class LeftOut:
    """Something that can't be drawn, and why."""

    what: str
    reason: str


@dataclass(frozen=True)
class Kind:
    """One kind of figure."""

    name: str
    summary: str
    pictures: Callable[[Study], Iterable[Picture | LeftOut]]


@dataclass(frozen=True)
class Group:
    """The runs of one row on one task, which differ in their seeds."""

    row: Row
    column: Column
    cell: Cell
    look: style.Look

    @property
    def runs(self) -> list[Run]:
        return self.row.runs[self.column.task]

    @property
    def label(self) -> str:
        """The row as figures show it."""
        return style.name(self.row.label)

    @property
    def task(self) -> str:
        """The task as figures show it."""
        return style.name(self.column.task)

    @property
    def title(self) -> str:
        """The row and its task, for captions and reasons."""
        return f"{self.row.label} on {self.column.task}"

    def file(self, kind: str) -> str:
        """The name of a picture of this group alone."""
        return file_name(kind, self.column.task, self.row.label)


class Study:
    """The runs that figures are made of, as rows of a table. pair: two runs to compare, or None."""

    def __init__(self, found: RunSet, pair: tuple[Run, Run] | None = None) -> None:
        self.found = found
        self.pair = pair

    @cached_property
    def rows(self) -> Rows:
        return rows.build(self.found)

    @cached_property
    def grid(self) -> Grid:
        return grid.build(self.rows)

    def tasks(self) -> Iterator[tuple[Column, list[Group]]]:
        """Task by task, the rows that have done runs on it. A row looks the same on every task."""
        for place, column in enumerate(self.grid.columns):
            here = [
                Group(row, column, line[place], style.look(number))
                for number, (row, line) in enumerate(zip(self.grid.rows, self.grid.cells, strict=True))
                if line[place].n
            ]
            if here:
                yield column, here

    def axis(self, metric: str | None) -> tuple[str, float]:
        """What an axis of this metric is called, and what values are multiplied by."""
        scaled = self.grid.fractions.get(metric or "", False)
        return (f"{metric} × 100", 100.0) if scaled else (metric or "metric", 1.0)


def read(group: Group, reader: Callable[[Run], T]) -> tuple[list[tuple[Run, T]], list[LeftOut]]:
    """What `reader` finds in the runs of a group, and which runs it can't be had of."""
    found: list[tuple[Run, T]] = []
    reasons: list[tuple[Run, str]] = []
    for run in group.runs:
        try:
            found.append((run, reader(run)))
        except Unusable as error:
            reasons.append((run, str(error)))
    if not found and len({reason for _, reason in reasons}) == 1:
        return [], [LeftOut(group.title, reasons[0][1])]
    return found, [LeftOut(f"{group.title}, seed {run.record.seed}", reason) for run, reason in reasons]


def seeds(counts: Iterable[int], what: str = "mean ± sd over seeds") -> str:
    """What a bar or a band is, with the number of runs: `mean ± sd over seeds, n = 3`."""
    found = sorted(set(counts))
    if found == [1]:
        return "one seed each: no spread"
    span = f"n = {found[0]}" if len(found) == 1 else f"n = {found[0]} to {found[-1]}"
    return f"{what}, {span}" + ("; none where n = 1" if found[0] == 1 else "")


def pages(groups: Sequence[Group], most: int) -> Iterator[tuple[str, Sequence[Group]]]:
    """At most `most` rows a picture, with what its file's name ends in: nothing for a single one."""
    if len(groups) <= most:
        yield from [("", groups)] if groups else []
        return
    for number, start in enumerate(range(0, len(groups), most), 1):
        yield str(number), groups[start : start + most]


_UNSAFE = re.compile(r"[^A-Za-z0-9._=+,-]+")
_LONGEST = 60


def file_name(*parts: str) -> str:
    """Parts joined by dots, each in letters that every file system takes; empty parts are left out."""
    return ".".join(_safe(part) for part in parts if part)


def _safe(text: str) -> str:
    plain = text.replace(" ", ",")
    safe = _UNSAFE.sub("-", plain)
    if safe == plain and len(safe) <= _LONGEST:
        return safe
    return f"{safe[: _LONGEST - 7]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


__all__ = ["Group", "Kind", "LeftOut", "Picture", "Study", "Unusable", "file_name", "pages", "read", "seeds"]
