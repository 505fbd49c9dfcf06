"""The table at the top of the page, with the values by which its rows are filtered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from analysis.tables.cells import Cell, Grid
from analysis.tables.rows import Row
from analysis.tables.sheet import Entry, Head, Sheet
from analysis.text.phrases import runs

COMPLETE, FAILED, BLANK = "complete", "failed", "blank"


@dataclass(frozen=True)
class Column:
    """A column. first: the direction of the first sort, which puts the best on top."""

    head: Head
    task: str | None  # None for columns over all tasks
    first: str  # "ascending" or "descending"


@dataclass(frozen=True)
class Line:
    """A row. number: its index in the table; None for published rows. reasons: by entry, why it is blank."""

    number: int | None
    label: str
    model: str
    status: str
    entries: tuple[Entry, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    title: str | None
    published: bool
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Headline:
    columns: tuple[Column, ...]
    sections: tuple[Section, ...]
    models: tuple[str, ...]
    tasks: tuple[str, ...]
    statuses: tuple[str, ...]  # those that occur

    @property
    def size(self) -> int:
        """The number of rows without published ones."""
        return sum(line.number is not None for section in self.sections for line in section.lines)


def build(grid: Grid, sheet: Sheet) -> Headline:
    """The headline of a table and its sheet."""
    sections = []
    for index, section in enumerate(sheet.sections):
        if section.published:
            lines = [Line(None, line.label, "", "", line.entries, ("",) * len(line.entries)) for line in section.lines]
        else:
            numbers = grid.groups[index].rows
            lines = [
                _line(grid, sheet, number, line.entries) for number, line in zip(numbers, section.lines, strict=True)
            ]
        sections.append(Section(section.title, section.published, tuple(lines)))
    statuses = {line.status for section in sections for line in section.lines}
    return Headline(
        tuple(_columns(grid, sheet)),
        tuple(sections),
        models=tuple(dict.fromkeys(row.model for row in sorted(grid.rows, key=lambda row: row.model))),
        tasks=tuple(column.task for column in grid.columns),
        statuses=tuple(status for status in (COMPLETE, FAILED, BLANK) if status in statuses),
    )


def _columns(grid: Grid, sheet: Sheet) -> Iterator[Column]:
    for index, head in enumerate(sheet.heads):
        if index < len(grid.columns):
            column = grid.columns[index]
            yield Column(head, column.task, "ascending" if column.higher_is_better is False else "descending")
        else:
            yield Column(head, None, "descending" if head.name in ("average", "tokens/s") else "ascending")


# Why an entry over tasks is blank although the row has runs on every task.
_OVER_TASKS = {"average": "a metric is missing", "rank": "the only row to rank"}


def _line(grid: Grid, sheet: Sheet, number: int, entries: Sequence[Entry]) -> Line:
    row, cells = grid.rows[number], grid.cells[number]
    reasons = [_reason(cell) for cell in cells]
    done = sum(cell.n > 0 for cell in cells)
    for index, entry in enumerate(entries[len(cells) :], len(cells)):
        cost = sheet.heads[index].cost
        if entry.text:
            reasons.append("")
        elif done < len(cells) and not (cost and done):
            reasons.append("not on every task" if done else "no run is done")
        else:
            reasons.append("not measured" if cost else _OVER_TASKS[sheet.heads[index].name])
    return Line(number, row.label, row.model, _status(row, cells), tuple(entries), tuple(reasons))


def _reason(cell: Cell) -> str:
    if cell.n:
        return ""
    return f"{runs(cell.failed)} failed" if cell.failed else "no run"


def _status(row: Row, cells: Sequence[Cell]) -> str:
    if any(row.failed.values()):
        return FAILED
    return COMPLETE if all(cell.n for cell in cells) else BLANK
