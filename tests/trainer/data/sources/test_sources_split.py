"""GLUE has texts more than once: the selection split has none of those that are trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainer.data import rows as data
from trainer.data.sources.glue import Glue
from trainer.data.sources.split import groups, normalised


@pytest.mark.parametrize("task, twins", [("cola", 42), ("mrpc", 527), ("rte", 751), ("stsb", 1285)])
def test_no_text_of_glue_is_on_both_sides_of_the_selection_split(glue_folder: Path, task: str, twins: int):
    train = Glue(task, "nyu-mll/glue", "main", str(glue_folder)).load().splits["train"]
    columns = [train[name][:] for name in ("text", "text_pair") if name in train.column_names]
    found = groups(columns)
    assert sum(count for count in np.bincount(found) if count > 1) == twins
    order = np.random.default_rng(0).permutation(len(train))
    size = round(len(train) / 10)
    held_out = data._held_out(order, size, found)
    assert 0.95 * size < held_out.sum() <= size
    sides = [
        {normalised(column[row]) for row in rows for column in columns} for rows in (order[held_out], order[~held_out])
    ]
    assert not sides[0] & sides[1]
