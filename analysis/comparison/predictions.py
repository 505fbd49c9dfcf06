"""What two runs predicted for the same examples, from their `predictions.parquet`.

Nothing is cut to what the two have in common: examples that differ, or predictions that don't
give the metric of the record, are a reason to say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyarrow import ArrowException, parquet

from analysis.records.run_files import digest
from analysis.records.runs import Run
from analysis.stats.metrics import KNOWN, OF_CLASSES, Classes, over_resamples

FILENAME = "predictions.parquet"
_COLUMNS = ("split", "id", "label", "prediction")
# Of a recomputed metric: the order of a sum, not another prediction.
_TOLERANCE = 1e-6


class NotUsable(Exception):
    """Why nothing can be said over examples: one line, without a path the same for all runs."""


@dataclass(frozen=True)
class Predictions:
    """The reported split of one run, sorted by the id of its examples."""

    ids: np.ndarray
    labels: np.ndarray
    values: np.ndarray
    classes: Classes

    def score(self, metric: str) -> float:
        """One of `KNOWN`, of all examples."""
        everything = np.arange(len(self.ids))[None]
        return float(over_resamples(metric, self.labels, self.values[None], everything, self.classes)[0, 0])

    def same_examples(self, other: Predictions) -> bool:
        """Whether ids and labels are the same."""
        return np.array_equal(self.ids, other.ids) and np.array_equal(self.labels, other.labels)


def read(run: Run) -> Predictions:
    """The predictions that the run's metric was computed from. Raises `NotUsable`."""
    metric = run.record.metric
    if metric.name not in KNOWN:
        raise NotUsable(f"the metric {metric.name!r} can't be computed from predictions; can be: {', '.join(KNOWN)}")
    found = of_split(table(run), run, metric.split, metric.name)
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
        found = parquet.read_table(path, columns=list(_COLUMNS))
    except (OSError, ArrowException) as error:
        raise NotUsable(f"{path}: {str(error).splitlines()[0]}") from None
    missing = [name for name in _COLUMNS if name not in found.column_names]
    if missing:
        raise NotUsable(f"{path}: no column {', '.join(missing)}")
    return found


def of_split(rows: pa.Table, run: Run, name: str | None, metric: str) -> Predictions:
    """The predictions on one split, which a metric can be computed from. Raises `NotUsable`."""
    split, ids, labels, values = (rows[column].to_numpy() for column in _COLUMNS)
    here = split == name
    ids, labels, values = _sorted(ids[here].astype(str), labels[here], values[here])
    found = Predictions(ids, labels, values, _classes(run))
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
    for what, column in (("labels", found.labels), ("predictions", found.values)):
        if column.dtype.kind not in "iufb" or not np.isfinite(column).all():
            raise NotUsable(f"{where}: {what} that are not finite numbers")
    if metric in OF_CLASSES:
        if run.record.data.labels is None:
            raise NotUsable(f"{where}: the record does not say how many classes there are")
        ids = np.concatenate([found.labels, found.values])
        if ids.min() < 0 or ids.max() >= found.classes.count:
            raise NotUsable(f"{where}: a class {ids.max()}, the record says that there are {found.classes.count}")


def require_same_examples(left: Predictions, right: Predictions) -> None:
    """Raises `NotUsable` unless ids and labels are the same."""
    if not np.array_equal(left.ids, right.ids):
        only_a, only_b = len(np.setdiff1d(left.ids, right.ids)), len(np.setdiff1d(right.ids, left.ids))
        raise NotUsable(f"other examples: {only_a} of {len(left.ids)} and {only_b} of {len(right.ids)} have no partner")
    if not left.same_examples(right):
        raise NotUsable(f"other labels: on {int((left.labels != right.labels).sum())} of {len(left.ids)} examples")
