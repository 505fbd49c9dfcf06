"""Predictions for rows of kinds of task other than classes and numbers of texts, written as they are made."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from trainer.data.sources import TaskData
    from trainer.objectives.objective import Predictions
    from trainer.runs.finished import Finished

AT_ONCE = 512  # rows that are predicted and written together


@dataclass(frozen=True)
class Predicted:
    """rows: how many. cut: how many of them were cut. metrics: None where it is not known what is right."""

    rows: int
    cut: int
    metrics: dict[str, float] | None


def predict(run: Finished, path: Path, references: bool, output: Path) -> Predicted:
    """Writes what a run predicts for the rows of a file. references: whether columns of what is right are read.

    Raises `ConfigError` for a row that the run can't take; nothing is left in `output` then.
    """
    from trainer.data.sources import TaskData, unsplit
    from trainer.errors import ConfigError
    from trainer.objectives.objective import Predictions

    labels = run.context.rows.labels
    named = dict(run.config.task.source)
    content, known = unsplit.read(path, run.objective.content.column_names, named, labels, references)
    split = content.splits[unsplit.SPLIT]
    cut, parts = 0, []
    with _writer(output) as write:
        for first in range(0, len(split), AT_ONCE):
            part = TaskData({unsplit.SPLIT: split.select(range(first, min(first + AT_ONCE, len(split))))}, labels)
            try:
                found, order, cut_here = run.predict(part, known)
            except ConfigError as error:
                raise ConfigError(str(error).replace("task: ", "--data: ", 1)) from None
            write(_frame(run, part, found, np.argsort(order), known))
            parts.append(found)
            cut += cut_here
    if not known:
        return Predicted(len(split), cut, None)
    whole = Predictions(
        np.concatenate([np.asarray(part.reference) for part in parts]),
        np.concatenate([np.asarray(part.prediction) for part in parts]),
        {name: np.concatenate([part.stats[name] for part in parts]) for name in parts[0].stats},
    )
    return Predicted(len(split), cut, run.objective.predicting(content, known).score(whole))


def _frame(run: Finished, content: TaskData, found: Predictions, places: np.ndarray, known: bool) -> pd.DataFrame:
    """The rows in their order: id, unit, reference and numbers where it is known what is right, and prediction.

    places: of each row its place in `found`.
    """
    import pandas as pd
    from scipy.special import softmax

    (split,) = content.splits.values()
    labels = content.labels if found.outputs is not None else None

    def named(values: Any) -> list[Any]:
        ordered = [values[place] for place in places]
        return ordered if labels is None else [labels[int(number)] for number in ordered]

    columns: dict[str, Any] = {"id": split["id"], "unit": run.objective.example}
    if known:
        columns["reference"] = named(found.reference)
    columns["prediction"] = named(found.prediction)
    if known:
        columns |= {f"stats.{name}": values[places] for name, values in found.stats.items()}
    if found.outputs is not None and labels is not None:
        shares = softmax(found.outputs.astype("float64"), axis=1)[places]
        columns |= {f"probability of {name}": column for name, column in zip(labels, shares.T, strict=True)}
    return pd.DataFrame(columns)


@contextlib.contextmanager
def _writer(path: Path) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Within it a function adds rows to a file, which has its name when all are in it."""
    import pyarrow as pa
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with contextlib.ExitStack() as whole, contextlib.ExitStack() as stack:
        whole.callback(temporary.unlink, missing_ok=True)
        if path.suffix.lower() == ".csv":
            file = stack.enter_context(temporary.open("w", encoding="utf-8", newline=""))

            def write(rows: pd.DataFrame) -> None:
                rows.to_csv(file, index=False, header=not file.tell(), lineterminator="\n")
                file.flush()
        else:
            writers: list[parquet.ParquetWriter] = []

            def write(rows: pd.DataFrame) -> None:
                schema = writers[0].schema if writers else None
                table = pa.Table.from_pandas(rows, schema, preserve_index=False).replace_schema_metadata(None)
                if not writers:
                    writers.append(stack.enter_context(parquet.ParquetWriter(temporary, table.schema)))
                writers[0].write_table(table)

        yield write
        stack.close()
        os.replace(temporary, path)
