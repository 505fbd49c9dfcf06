"""Writes predictions.parquet: the predictions for all reported examples, in one schema for all kinds of task.

Columns: `split`, `id` of the example, `unit` ("text", …), `reference`, `prediction`, and `stats.*`: numbers whose sums
over the examples determine the metrics. The file's metadata has the formulas by the metric's name. A kind that keeps
the model's raw outputs adds `outputs`, and its `reference` again as `label`, the name that existing scripts read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.objectives import mixture
from trainer.objectives.objective import Objective, Predictions

PREDICTIONS = "predictions.parquet"
FORMULAS = b"loratory.formulas"


def write(
    folder: Path, predictions: Mapping[str, Predictions], ids: Mapping[str, Sequence[str]], objective: Objective
) -> None:
    """Writes the file in `folder`. predictions, ids: by split, in the same order of examples."""
    import pandas as pd
    import pyarrow as pa
    from pyarrow import parquet

    frames = []
    for split, own in predictions.items():
        columns: dict[str, Any] = {"split": split, "id": ids[split], "unit": objective.example}
        columns |= {"reference": own.reference, "prediction": own.prediction}
        columns |= {f"stats.{name}": np.asarray(values, np.float64) for name, values in own.stats.items()}
        if own.outputs is not None:
            columns["label"] = own.reference
            columns["outputs"] = list(own.outputs.reshape(len(own), -1).astype(np.float32))
        frames.append(pd.DataFrame(columns))
    table = pa.Table.from_pandas(pd.concat(frames), preserve_index=False)
    table = table.replace_schema_metadata({FORMULAS: json.dumps(mixture.formulas(objective.formulas, objective))})
    path = folder / PREDICTIONS
    temporary = path.with_name(f".{path.name}.tmp")
    parquet.write_table(table, temporary)
    os.replace(temporary, path)
