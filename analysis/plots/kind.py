"""Defines a kind of figure: which pictures the runs allow, and why others are left out."""

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
    """One figure that can be drawn. name: of its files, without ending."""

    name: str
    caption: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class LeftOut:
    """Something that can't be drawn, and the reason."""

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
        """The label of the row in figures."""
        return style.name(self.row.label)

    @property
    def task(self) -> str:
        """The name of the task in figures."""
        return style.name(self.column.task)

    @property
    def title(self) -> str:
        """The row and its task, for captions and reasons."""
        return f"{self.row.label} on {self.column.task}"

    def file(self, kind: str) -> str:
        """The name of a picture of this group only."""
        return file_name(kind, self.column.task, self.row.label)


class Study:
    """The runs of the figures, as rows of a table. pair: two runs to compare, or None."""

    def __init__(self, runs: RunSet, pair: tuple[Run, Run] | None = None) -> None:
        self.runs = runs
        self.pair = pair

    @cached_property
    def rows(self) -> Rows:
        return rows.build(self.runs)

    @cached_property
    def grid(self) -> Grid:
        return grid.build(self.rows)

    def tasks(self) -> Iterator[tuple[Column, list[Group]]]:
        """For each task, the rows with done runs. A row has the same look on every task."""
        for index, column in enumerate(self.grid.columns):
            here = [
                Group(row, column, line[index], style.look(number))
                for number, (row, line) in enumerate(zip(self.grid.rows, self.grid.cells, strict=True))
                if line[index].n
            ]
            if here:
                yield column, here

    def axis(self, metric: str | None) -> tuple[str, float]:
        """The name of an axis of this metric, and the factor for its values."""
        scaled = self.grid.fractions.get(metric or "", False)
        return (f"{metric} × 100", 100.0) if scaled else (metric or "metric", 1.0)


def read(group: Group, reader: Callable[[Run], T]) -> tuple[list[tuple[Run, T]], list[LeftOut]]:
    """The result of `reader` for each run of a group, and the runs for which it is unusable."""
    results: list[tuple[Run, T]] = []
    reasons: list[tuple[Run, str]] = []
    for run in group.runs:
        try:
            results.append((run, reader(run)))
        except Unusable as error:
            reasons.append((run, str(error)))
    if not results and len({reason for _, reason in reasons}) == 1:
        return [], [LeftOut(group.title, reasons[0][1])]
    return results, [LeftOut(f"{group.title}, seed {run.record.seed}", reason) for run, reason in reasons]


def seeds(counts: Iterable[int], what: str = "mean ± sd over seeds") -> str:
    """The meaning of a bar or band, with the number of runs: `mean ± sd over seeds, n = 3`."""
    numbers = sorted(set(counts))
    if numbers == [1]:
        return "one seed each: no spread"
    span = f"n = {numbers[0]}" if len(numbers) == 1 else f"n = {numbers[0]} to {numbers[-1]}"
    return f"{what}, {span}" + ("; none where n = 1" if numbers[0] == 1 else "")


def pages(lines: Sequence[T], most: int) -> Iterator[tuple[str, Sequence[T]]]:
    """Pages of at most `most` rows, with the suffix of the file's name, which is empty for a single page."""
    if len(lines) <= most:
        yield from [("", lines)] if lines else []
        return
    for number, start in enumerate(range(0, len(lines), most), 1):
        yield str(number), lines[start : start + most]


_UNSAFE = re.compile(r"[^A-Za-z0-9._=+,-]+")
_LONGEST = 60


def file_name(*parts: str) -> str:
    """Parts joined by dots, in characters that every file system allows; empty parts are omitted."""
    return ".".join(_safe(part) for part in parts if part)


def _safe(text: str) -> str:
    plain = text.replace(" ", ",")
    safe = _UNSAFE.sub("-", plain)
    if safe == plain and len(safe) <= _LONGEST:
        return safe
    return f"{safe[: _LONGEST - 7]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


__all__ = ["Group", "Kind", "LeftOut", "Picture", "Study", "Unusable", "file_name", "pages", "read", "seeds"]
