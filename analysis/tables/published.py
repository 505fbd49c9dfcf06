"""Numbers published in papers, read from papers/*.yaml, for comparison.

They were measured by others under another protocol. So they are never marked, averaged or ranked, and every set names
its source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.errors import AnalysisError
from analysis.tables.cells import Column, Grid

FOLDER = Path(__file__).parent / "papers"

# Names in papers that don't determine the metric.
_UNCLEAR = {"correlation": ("pearson", "spearman")}


@dataclass(frozen=True)
class PaperRow:
    """One row. values: by task, as printed, in the order of the paper's metrics."""

    label: str
    quoted: bool  # the paper quotes it from another paper
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
        """The number for a column, as printed; empty if the paper has none on the column's metric."""
        index = self.index(column)
        values = row.values.get(column.task, ())
        return values[index] if index is not None and index < len(values) else ""

    def index(self, column: Column) -> int | None:
        """The index of the column's metric among the paper's metrics of the task; None if it is not there."""
        for index, name in enumerate(self.metrics.get(column.task, ())):
            if name == column.metric or column.metric in _UNCLEAR.get(name, ()):
                return index
        return None

    def remarks(self, columns: Sequence[Column]) -> Iterator[str]:
        """Remarks on columns whose metric the paper lacks or does not name."""
        for column in columns:
            names = self.metrics.get(column.task, ())
            index = self.index(column)
            if names and index is None:
                yield f"{column.task} is left out, the paper has {' and '.join(names)}"
            elif index is not None and names[index] != column.metric:
                yield f"{column.task} is “{names[index]}”, the paper does not say which"


def names() -> list[str]:
    """The names of all sets."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> Paper:
    """The set with this name. Raises `AnalysisError` if there is none."""
    import yaml

    if name not in names():
        raise AnalysisError(f"--published: {name!r}, allowed: {', '.join(names())}")
    # BaseLoader keeps numbers as they are printed: 90.70, not 90.7.
    raw = yaml.load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    metrics = {task: tuple(names) for task, names in raw["metrics"].items()}
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
    """The sets with these names. Raises `AnalysisError` if one has no number for this table."""
    papers = [load(name) for name in dict.fromkeys(wanted)]
    for paper in papers:
        if all(paper.index(column) is None for column in grid.columns):
            raise AnalysisError(
                f"--published: {paper.name} has no number for {', '.join(column.task for column in grid.columns)}; "
                f"it has {', '.join(f'{task} ({names[0]})' for task, names in paper.metrics.items())}"
            )
    return papers
