"""A table as lines of entries, before it becomes Markdown, LaTeX or HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.tables.averages import Averages, Ranks
from analysis.tables.cells import Grid, Spread
from analysis.tables.published import Paper
from analysis.text import numbers


@dataclass(frozen=True)
class Head:
    """The head of a column."""

    name: str
    metric: str = ""
    reading: str = ""  # which checkpoint


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry; all empty for a blank."""

    text: str = ""
    sd: str = ""
    n: int = 0  # 0: not shown
    mark: str = ""  # "best", "second" or nothing
    value: float | None = None  # the number that the text is of; None too for other people's


@dataclass(frozen=True)
class Line:
    label: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Section:
    """Lines below a title. `foreign`: other people's numbers under another protocol."""

    title: str | None
    lines: tuple[Line, ...]
    foreign: bool = False


@dataclass(frozen=True)
class Sheet:
    """The whole table: `heads` are those of the entries, the labels' is `variant`."""

    heads: tuple[Head, ...]
    sections: tuple[Section, ...]


def build(grid: Grid, averages: Averages, ranks: Ranks, papers: Sequence[Paper] = ()) -> Sheet:
    """The sheet of a grid; average and rank are left out where no row has one."""
    heads = [Head(column.task, column.metric or "", column.reading) for column in grid.columns]
    heads += [Head("average")] * averages.shown + [Head("rank")] * ranks.shown
    heads += [Head(cost.header) for cost in grid.cost_columns]
    sections = [
        Section(group.title, tuple(_line(grid, averages, ranks, place) for place in group.places))
        for group in grid.groups
    ]
    sections += [_published(grid, paper, len(heads)) for paper in papers]
    return Sheet(tuple(heads), tuple(sections))


def _line(grid: Grid, averages: Averages, ranks: Ranks, place: int) -> Line:
    entries = [
        _entry(cell.spread, column.marks.of(place))
        for column, cell in zip(grid.columns, grid.cells[place], strict=True)
    ]
    if averages.shown:
        entries.append(_entry(averages.spreads[place], averages.marks.of(place)))
    if ranks.shown:
        rank = ranks.means[place]
        mark = ranks.marks.of(place)
        entries.append(Entry() if rank is None else Entry(numbers.fixed(rank, 2), mark=mark, value=rank))
    for cost in grid.cost_columns:
        value = grid.spent[place].means.of(cost)
        entries.append(Entry() if value is None else Entry(cost.text(value), value=value))
    return Line(grid.rows[place].label, tuple(entries))


def _entry(spread: Spread | None, mark: str) -> Entry:
    return Entry() if spread is None else Entry(spread.mean_text, spread.sd_text, spread.n, mark, spread.mean)


def _published(grid: Grid, paper: Paper, width: int) -> Section:
    lines = []
    # Between the tasks and the costs: average and rank, which are ours alone.
    blank = [Entry()] * (width - len(grid.columns) - len(grid.cost_columns))
    for row in paper.rows:
        shown = [Entry(paper.value(row, column)) for column in grid.columns]
        costs = [Entry(row.parameters if cost.key == "trainable_start" else "") for cost in grid.cost_columns]
        if any(entry.text for entry in shown):
            label = f"{row.label} (quoted there)" if row.quoted else row.label
            lines.append(Line(label, (*shown, *blank, *costs)))
    return Section(f"published by others, another protocol: {paper.name}", tuple(lines), foreign=True)
