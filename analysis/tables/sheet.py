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
    cost: bool = False  # of what a row took, not of what came out


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


AVERAGE, RANK = "average", "rank"  # the columns over tasks


def build(
    grid: Grid, averages: Averages, ranks: Ranks, papers: Sequence[Paper] = (), columns: Sequence[str] | None = None
) -> Sheet:
    """The sheet of a grid; average and rank are left out where no row has one.

    columns: the names of those behind the tasks, in their order; None for average, rank and all costs of the grid.
    """
    costs = {cost.name: cost for cost in grid.cost_columns}
    if columns is None:
        columns = [AVERAGE, RANK, *costs]
    shown = [name for name in columns if name in costs or (averages if name == AVERAGE else ranks).shown]
    heads = [Head(column.task, column.metric or "", column.reading) for column in grid.columns]
    heads += [Head(costs[name].header, cost=True) if name in costs else Head(name) for name in shown]

    def line(place: int) -> Line:
        entries = [
            _entry(cell.spread, column.marks.of(place))
            for column, cell in zip(grid.columns, grid.cells[place], strict=True)
        ]
        for name in shown:
            if name == AVERAGE:
                entries.append(_entry(averages.spreads[place], averages.marks.of(place)))
            elif name == RANK:
                rank, mark = ranks.means[place], ranks.marks.of(place)
                entries.append(Entry() if rank is None else Entry(numbers.fixed(rank, 2), mark=mark, value=rank))
            else:
                value = grid.spent[place].means.of(costs[name])
                entries.append(Entry() if value is None else Entry(costs[name].text(value), value=value))
        return Line(grid.rows[place].label, tuple(entries))

    sections = [Section(group.title, tuple(map(line, group.places))) for group in grid.groups]
    sections += [_published(grid, paper, heads) for paper in papers]
    return Sheet(tuple(heads), tuple(sections))


def _entry(spread: Spread | None, mark: str) -> Entry:
    return Entry() if spread is None else Entry(spread.mean_text, spread.sd_text, spread.n, mark, spread.mean)


def _published(grid: Grid, paper: Paper, heads: Sequence[Head]) -> Section:
    lines = []
    for row in paper.rows:
        shown = [Entry(paper.value(row, column)) for column in grid.columns]
        # Average and rank are ours alone.
        others = [Entry(row.parameters if head.name == "trainable" else "") for head in heads[len(shown) :]]
        if any(entry.text for entry in shown):
            label = f"{row.label} (quoted there)" if row.quoted else row.label
            lines.append(Line(label, (*shown, *others)))
    return Section(f"published by others, another protocol: {paper.name}", tuple(lines), foreign=True)
