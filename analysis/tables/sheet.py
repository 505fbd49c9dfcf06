"""A table as lines of entries, before it is formatted as Markdown, LaTeX or HTML."""

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
    reading: str = ""  # of which checkpoint
    cost: bool = False  # whether it is a column of costs


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. All fields of a blank one are empty."""

    text: str = ""
    sd: str = ""
    n: int = 0  # 0 is not shown
    mark: str = ""  # "best", "second" or empty
    value: float | None = None  # the number; None for published ones


@dataclass(frozen=True)
class Line:
    label: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Section:
    """Lines below a title. published: whether they are numbers of a paper, under another protocol."""

    title: str | None
    lines: tuple[Line, ...]
    published: bool = False


@dataclass(frozen=True)
class Sheet:
    """The whole table. heads: of the entries; the head of the labels is `variant`."""

    heads: tuple[Head, ...]
    sections: tuple[Section, ...]


AVERAGE, RANK = "average", "rank"  # the columns over tasks


def build(
    grid: Grid, averages: Averages, ranks: Ranks, papers: Sequence[Paper] = (), columns: Sequence[str] | None = None
) -> Sheet:
    """The sheet of a grid. Average and rank are omitted if no row has them.

    columns: names of the columns after the tasks, in order; None for average, rank and all costs of the grid.
    """
    costs = {cost.name: cost for cost in grid.cost_columns}
    if columns is None:
        columns = [AVERAGE, RANK, *costs]
    shown = [name for name in columns if name in costs or (averages if name == AVERAGE else ranks).shown]
    heads = [Head(column.task, column.metric or "", column.reading) for column in grid.columns]
    heads += [Head(costs[name].header, cost=True) if name in costs else Head(name) for name in shown]

    def line(row: int) -> Line:
        entries = [
            _entry(cell.spread, column.marks.of(row))
            for column, cell in zip(grid.columns, grid.cells[row], strict=True)
        ]
        for name in shown:
            if name == AVERAGE:
                entries.append(_entry(averages.spreads[row], averages.marks.of(row)))
            elif name == RANK:
                rank, mark = ranks.means[row], ranks.marks.of(row)
                entries.append(Entry() if rank is None else Entry(numbers.fixed(rank, 2), mark=mark, value=rank))
            else:
                value = grid.spent[row].means.of(costs[name])
                entries.append(Entry() if value is None else Entry(costs[name].text(value), value=value))
        return Line(grid.rows[row].label, tuple(entries))

    sections = [Section(group.title, tuple(map(line, group.rows))) for group in grid.groups]
    sections += [_published(grid, paper, heads) for paper in papers]
    return Sheet(tuple(heads), tuple(sections))


def _entry(spread: Spread | None, mark: str) -> Entry:
    return Entry() if spread is None else Entry(spread.mean_text, spread.sd_text, spread.n, mark, spread.mean)


def _published(grid: Grid, paper: Paper, heads: Sequence[Head]) -> Section:
    lines = []
    for row in paper.rows:
        shown = [Entry(paper.value(row, column)) for column in grid.columns]
        # Papers have neither average nor rank here.
        others = [Entry(row.parameters if head.name == "trainable" else "") for head in heads[len(shown) :]]
        if any(entry.text for entry in shown):
            label = f"{row.label} (quoted there)" if row.quoted else row.label
            lines.append(Line(label, (*shown, *others)))
    return Section(f"published by others, another protocol: {paper.name}", tuple(lines), published=True)
