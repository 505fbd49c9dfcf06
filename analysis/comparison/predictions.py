"""What two runs predicted for the same examples, from their `predictions.parquet`.

Nothing is cut to what the two have in common: examples that differ, or predictions that don't
give the metric of the record, are a reason to say nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from pyarrow import ArrowException, parquet

from analysis.records.run_files import digest
from analysis.records.runs import Run
from analysis.stats.additive import Additive
from analysis.stats.metrics import KNOWN, OF_CLASSES, over_resamples
from trainer.objectives.formula import names as formula_names
from trainer.objectives.metrics import Classes

FILENAME = "predictions.parquet"
FORMULAS = b"loratory.formulas"  # in the file's metadata: by metric the formula of sums that it is
STATS = "stats."  # begins the name of a column of numbers whose sums formulas are of
_COLUMNS = ("split", "id", "reference", "prediction")
_BEFORE = {"label": "reference"}  # what columns were called
# Of a recomputed metric: the order of a sum, not another prediction.
_TOLERANCE = 1e-6


class NotUsable(Exception):
    """Why nothing can be said over examples: one line, without a path the same for all runs."""


@dataclass(frozen=True)
class Predictions:
    """The reported split of one run, sorted by the id of its examples.

    labels, values: what is right and what was predicted: class ids, numbers or texts. stats: numbers by name, and
    formulas of their sums by metric; both empty in files of before.
    """

    ids: np.ndarray
    labels: np.ndarray
    values: np.ndarray
    classes: Classes
    stats: Mapping[str, np.ndarray] = field(default_factory=dict)
    formulas: Mapping[str, str] = field(default_factory=dict)

    def score(self, metric: str) -> float:
        """One of `KNOWN`, or with a formula, of all examples."""
        everything = np.arange(len(self.ids))[None]
        found = over_resamples(
            metric, self.labels, self.values[None], everything, self.classes, additive(metric, [self])
        )
        return float(found[0, 0])

    def right(self, metric: str) -> np.ndarray | None:
        """For each example whether the model was right, where the metric is the share of these; else None."""
        name, _, over = self.formulas.get(metric, _formula(metric) or "").partition(" / ")
        if over != "examples":
            return None
        if name in self.stats:
            column = self.stats[name]
            return column == 1 if np.isin(column, (0, 1)).all() else None
        return self.values == self.labels if name == "correct" else None

    def same_examples(self, other: Predictions) -> bool:
        """Whether ids and labels are the same."""
        return np.array_equal(self.ids, other.ids) and np.array_equal(self.labels, other.labels)


def _formula(metric: str) -> str | None:
    return KNOWN[metric].formula if metric in KNOWN else None


def additive(metric: str, models: Sequence[Predictions]) -> Additive | None:
    """The metric as a formula of the statistics of these models, where their files have it."""
    formula = models[0].formulas.get(metric)
    if formula is None or any(one.formulas.get(metric) != formula for one in models):
        return None
    names = models[0].stats.keys()
    return Additive(formula, {name: np.stack([one.stats[name] for one in models]) for name in names})


def read(run: Run) -> Predictions:
    """The predictions that the run's metric was computed from. Raises `NotUsable`."""
    metric = run.record.metric
    rows = table(run)
    if metric.name not in {*KNOWN, *formulas(rows)}:
        raise NotUsable(f"the metric {metric.name!r} can't be computed from predictions; can be: {', '.join(KNOWN)}")
    found = of_split(rows, run, metric.split, metric.name)
    computed = found.score(metric.name)
    if metric.value is None or differs(computed, metric.value):
        where = f"{run.folder / FILENAME}, split {metric.split}"
        raise NotUsable(f"{where}: {metric.name} is {computed:.6g}, the record says {metric.value:.6g}")
    return found


def table(run: Run) -> pa.Table:
    """All reported splits of a run. Raises `NotUsable`."""
    path = run.folder / FILENAME
    if not path.is_file():
        raise NotUsable(f"no {FILENAME} in its folder")
    try:
        if run.record.files.predictions not in (None, digest(path)):
            raise NotUsable(f"{path}: not what the run wrote: its hash is not that of the record")
        schema = parquet.read_schema(path)
        names = (*_COLUMNS, *(old for old, new in _BEFORE.items() if new not in schema.names))
        wanted = [name for name in schema.names if name in names or name.startswith(STATS)]
        found = parquet.read_table(path, columns=wanted)
    except (OSError, ArrowException) as error:
        raise NotUsable(f"{path}: {str(error).splitlines()[0]}") from None
    found = found.rename_columns([_BEFORE.get(name, name) for name in found.column_names]).replace_schema_metadata(
        schema.metadata
    )
    missing = [name for name in _COLUMNS if name not in found.column_names]
    if missing:
        raise NotUsable(f"{path}: no column {', '.join(missing)}")
    return found


def formulas(rows: pa.Table) -> dict[str, str]:
    """By metric the formulas that lie beside predictions. Raises `NotUsable`."""
    try:
        found = json.loads((rows.schema.metadata or {}).get(FORMULAS, b"{}"))
        for text in found.values():
            formula_names(text)
    except (ValueError, TypeError, AttributeError) as error:
        raise NotUsable(f"{FILENAME}: formulas that can't be read: {str(error).splitlines()[0]}") from None
    return {str(name): str(text) for name, text in found.items()}


def of_split(rows: pa.Table, run: Run, name: str | None, metric: str) -> Predictions:
    """The predictions on one split, which a metric can be computed from. Raises `NotUsable`."""
    stats = [column for column in rows.column_names if column.startswith(STATS)]
    split, ids, *columns = (rows[column].to_numpy() for column in (*_COLUMNS, *stats))
    here = split == name
    ids, labels, values, *numbers = _sorted(ids[here].astype(str), *(column[here] for column in columns))
    by_name = {column.removeprefix(STATS): found for column, found in zip(stats, numbers, strict=True)}
    found = Predictions(ids, labels, values, _classes(run), by_name, formulas(rows))
    _check(found, run, metric, f"{run.folder / FILENAME}, split {name}")
    return found


def differs(computed: float, recorded: float) -> bool:
    """Whether a metric is another one than the record says, and not the same in another order of a sum."""
    return abs(computed - recorded) > _TOLERANCE * max(1.0, abs(recorded))


def _classes(run: Run) -> Classes:
    """Those of the run's task, as its record says; one that names no positive class had the second of two."""
    data = run.record.data
    place = data.classes.index(data.positive) if data.classes and data.positive in data.classes else 1
    return Classes(data.labels or 1, place)


def _sorted(ids: np.ndarray, *columns: np.ndarray) -> tuple[np.ndarray, ...]:
    order = np.argsort(ids, kind="stable")
    return (ids[order], *(column[order] for column in columns))


def _check(found: Predictions, run: Run, metric: str, where: str) -> None:
    if len(found.ids) < 2:
        raise NotUsable(f"{where}: {len(found.ids)} examples")
    twice = len(found.ids) - len(np.unique(found.ids))
    if twice:
        raise NotUsable(f"{where}: {twice} ids are there more than once")
    if metric in found.formulas:
        _check_statistics(found, metric, where)
        return
    for what, column in (("labels", found.labels), ("predictions", found.values)):
        if column.dtype.kind not in "iufb" or not np.isfinite(column).all():
            raise NotUsable(f"{where}: {what} that are not finite numbers")
    if metric in OF_CLASSES:
        if run.record.data.labels is None:
            raise NotUsable(f"{where}: the record does not say how many classes there are")
        ids = np.concatenate([found.labels, found.values])
        if ids.min() < 0 or ids.max() >= found.classes.count:
            raise NotUsable(f"{where}: a class {ids.max()}, the record says that there are {found.classes.count}")


def _check_statistics(found: Predictions, metric: str, where: str) -> None:
    for name in formula_names(found.formulas[metric]):
        column = found.stats.get(name)
        if column is None and name != "examples":
            raise NotUsable(f"{where}: no column {STATS}{name}, which {metric} is computed from")
        if column is not None and (column.dtype.kind not in "iufb" or not np.isfinite(column).all()):
            raise NotUsable(f"{where}: {STATS}{name} has values that are not finite numbers")


def require_same_examples(left: Predictions, right: Predictions) -> None:
    """Raises `NotUsable` unless ids and labels are the same."""
    if not np.array_equal(left.ids, right.ids):
        only_a, only_b = len(np.setdiff1d(left.ids, right.ids)), len(np.setdiff1d(right.ids, left.ids))
        raise NotUsable(f"other examples: {only_a} of {len(left.ids)} and {only_b} of {len(right.ids)} have no partner")
    if not left.same_examples(right):
        raise NotUsable(f"other labels: on {int((left.labels != right.labels).sum())} of {len(left.ids)} examples")
