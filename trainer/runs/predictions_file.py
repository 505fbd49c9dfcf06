"""predictions.parquet: what a run predicted for every example that it reports, in one schema for all kinds of task.

Columns: `split`, `id` of the example, `unit` (what an example is), `reference`, `prediction`, and `stats.*`: numbers
whose sums over examples give the metrics. The formulas that do so are in the file's metadata, by the metric's name.
A kind that keeps the model's raw outputs has them in `outputs`, and its `reference` in `label`, too: the name by which
users' scripts have always read a class or a number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.objectives.objective import Objective, Predictions

PREDICTIONS = "predictions.parquet"
FORMULAS = b"loratory.formulas"


def write(
    folder: Path, found: Mapping[str, Predictions], ids: Mapping[str, Sequence[str]], objective: Objective
) -> None:
    """Writes the file in `folder`. found, ids: by split, in the same order of examples."""
    import pandas as pd
    import pyarrow as pa
    from pyarrow import parquet

    frames = []
    for split, one in found.items():
        columns: dict[str, Any] = {"split": split, "id": ids[split], "unit": objective.example}
        columns |= {"reference": one.reference, "prediction": one.prediction}
        columns |= {f"stats.{name}": np.asarray(values, np.float64) for name, values in one.stats.items()}
        if one.outputs is not None:
            columns["label"] = one.reference
            columns["outputs"] = list(one.outputs.reshape(len(one), -1).astype(np.float32))
        frames.append(pd.DataFrame(columns))
    table = pa.Table.from_pandas(pd.concat(frames), preserve_index=False)
    table = table.replace_schema_metadata({FORMULAS: json.dumps(objective.formulas)})
    path = folder / PREDICTIONS
    temporary = path.with_name(f".{path.name}.tmp")
    parquet.write_table(table, temporary)
    os.replace(temporary, path)
