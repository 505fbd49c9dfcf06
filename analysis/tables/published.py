"""Numbers that papers report, to stand beside ours: read from papers/*.yaml.

They were measured by other people under another protocol. They are never marked as best, never
averaged or ranked with ours, and every set says where it was read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.errors import AnalysisError
from analysis.tables.cells import Column, Grid

FOLDER = Path(__file__).parent / "papers"

# How a paper may call a metric without saying which one it is.
_UNCLEAR = {"correlation": ("pearson", "spearman")}


@dataclass(frozen=True)
class PaperRow:
    """One row: numbers as printed, by task in the order of the paper's metrics."""

    label: str
    quoted: bool  # the paper itself has it from another one
    parameters: str  # as printed
    values: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Paper:
    """One set of published numbers, in per cent."""

    name: str
    source: str
    protocol: str
    metrics: dict[str, tuple[str, ...]]  # by task
    rows: tuple[PaperRow, ...]

    def value(self, row: PaperRow, column: Column) -> str:
        """The number for a column of ours, as printed; nothing where there is none on its metric."""
        place = self.place(column)
        values = row.values.get(column.task, ())
        return values[place] if place is not None and place < len(values) else ""

    def place(self, column: Column) -> int | None:
        """Which of the paper's numbers for a task is on the metric of a column."""
        for place, name in enumerate(self.metrics.get(column.task, ())):
            if name == column.metric or column.metric in _UNCLEAR.get(name, ()):
                return place
        return None

    def remarks(self, columns: Sequence[Column]) -> Iterator[str]:
        """What a reader of these columns must know."""
        for column in columns:
            names = self.metrics.get(column.task, ())
            place = self.place(column)
            if names and place is None:
                yield f"{column.task} is left out, the paper has {' and '.join(names)}"
            elif place is not None and names[place] != column.metric:
                yield f"{column.task} is “{names[place]}”, not said which"


def names() -> list[str]:
    """The sets that there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> Paper:
    """The set of this name. Raises `AnalysisError` for an unknown one."""
    import yaml

    if name not in names():
        raise AnalysisError(f"--published: {name!r}, allowed: {', '.join(names())}")
    # Without types: a number stays as it is printed, 90.70 and not 90.7.
    raw = yaml.load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    metrics = {task: tuple(own) for task, own in raw["metrics"].items()}
    rows = tuple(
        PaperRow(
            label=row["name"],
            quoted=row.get("quoted") == "true",
            parameters=row.get("parameters", ""),
            values={task: tuple(row[task].split("/")) for task in metrics if task in row},
        )
        for row in raw["rows"]
    )
    return Paper(name, raw["source"], raw["protocol"], metrics, rows)


def beside(grid: Grid, wanted: Sequence[str]) -> list[Paper]:
    """The sets of these names. Raises `AnalysisError` for one that has no number for this table."""
    found = [load(name) for name in dict.fromkeys(wanted)]
    for paper in found:
        if all(paper.place(column) is None for column in grid.columns):
            raise AnalysisError(
                f"--published: {paper.name} has no number for {', '.join(column.task for column in grid.columns)}; "
                f"it has {', '.join(f'{task} ({own[0]})' for task, own in paper.metrics.items())}"
            )
    return found
