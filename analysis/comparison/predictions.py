"""What two runs predicted for the same examples, from their `predictions.parquet`.

Nothing is cut to what the two have in common: examples that differ, or predictions that don't
give the metric of the record, are a reason to say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
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

    def same_examples(self, other: Predictions) -> bool:
        """Whether ids and labels are the same."""
        return np.array_equal(self.ids, other.ids) and np.array_equal(self.labels, other.labels)


def read(run: Run) -> Predictions:
    """The predictions that the run's metric was computed from. Raises `NotUsable`."""
    path, metric = run.folder / FILENAME, run.record.metric
    if metric.name not in KNOWN:
        raise NotUsable(f"the metric {metric.name!r} can't be computed from predictions; can be: {', '.join(KNOWN)}")
    if not path.is_file():
        raise NotUsable(f"no {FILENAME} in its folder")
    try:
        if run.record.files.predictions not in (None, digest(path)):
            raise NotUsable(f"{path}: not what the run wrote: its hash is not that of the record")
        table = parquet.read_table(path, columns=list(_COLUMNS))
    except (OSError, ArrowException) as error:
        raise NotUsable(f"{path}: {str(error).splitlines()[0]}") from None
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise NotUsable(f"{path}: no column {', '.join(missing)}")
    split, ids, labels, values = (table[name].to_numpy() for name in _COLUMNS)
    here = split == metric.split
    ids, labels, values = _sorted(ids[here].astype(str), labels[here], values[here])
    found = Predictions(ids, labels, values, _classes(run))
    _check(found, run, f"{path}, split {metric.split}")
    return found


def _classes(run: Run) -> Classes:
    """Those of the run's task, as its record says; one that names no positive class had the second of two."""
    data = run.record.data
    place = data.classes.index(data.positive) if data.classes and data.positive in data.classes else 1
    return Classes(data.labels or 1, place)


def _sorted(ids: np.ndarray, *columns: np.ndarray) -> tuple[np.ndarray, ...]:
    order = np.argsort(ids, kind="stable")
    return (ids[order], *(column[order] for column in columns))


def _check(found: Predictions, run: Run, where: str) -> None:
    if len(found.ids) < 2:
        raise NotUsable(f"{where}: {len(found.ids)} examples")
    twice = len(found.ids) - len(np.unique(found.ids))
    if twice:
        raise NotUsable(f"{where}: {twice} ids are there more than once")
    for what, column in (("labels", found.labels), ("predictions", found.values)):
        if column.dtype.kind not in "iufb" or not np.isfinite(column).all():
            raise NotUsable(f"{where}: {what} that are not finite numbers")
    if run.record.metric.name in OF_CLASSES:
        if run.record.data.labels is None:
            raise NotUsable(f"{where}: the record does not say how many classes there are")
        ids = np.concatenate([found.labels, found.values])
        if ids.min() < 0 or ids.max() >= found.classes.count:
            raise NotUsable(f"{where}: a class {ids.max()}, the record says that there are {found.classes.count}")
    recorded, metric = run.record.metric.value, run.record.metric.name or ""
    everything = np.arange(len(found.ids))[None]
    computed = float(over_resamples(metric, found.labels, found.values[None], everything, found.classes)[0, 0])
    if recorded is None or abs(computed - recorded) > _TOLERANCE * max(1.0, abs(recorded)):
        raise NotUsable(f"{where}: {metric} is {computed:.6g}, the record says {recorded:.6g}")


def require_same_examples(left: Predictions, right: Predictions) -> None:
    """Raises `NotUsable` unless ids and labels are the same."""
    if not np.array_equal(left.ids, right.ids):
        only_a, only_b = len(np.setdiff1d(left.ids, right.ids)), len(np.setdiff1d(right.ids, left.ids))
        raise NotUsable(f"other examples: {only_a} of {len(left.ids)} and {only_b} of {len(right.ids)} have no partner")
    if not left.same_examples(right):
        raise NotUsable(f"other labels: on {int((left.labels != right.labels).sum())} of {len(left.ids)} examples")
