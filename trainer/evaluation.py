"""One evaluation of a model: what it gives for every row, each process a part of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trainer import processes, shard
from trainer.data import Rows


@dataclass(frozen=True)
class Evaluation:
    """The metrics by name, the mean task loss, and the model's raw outputs."""

    metrics: dict[str, float]
    loss: float
    outputs: np.ndarray


def outputs(
    predict: Callable[[Rows], Any],
    rows: Rows,
    batch: int,
    task_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> tuple[np.ndarray, float]:
    """Raw outputs for all of `rows`, in their order, and the mean loss.

    predict: transformers' Trainer.predict. batch: rows at once, by which the processes divide them.
    """
    if processes.count() == 1:
        found = predict(rows)
        return np.asarray(found.predictions), float(found.metrics["test_loss"])
    mine = shard.evaluated(len(rows), batch, processes.rank(), processes.count())
    parts = processes.gathered((mine, np.asarray(predict(rows.view(np.asarray(mine))).predictions)))
    whole = np.empty((len(rows), *parts[0][1].shape[1:]), parts[0][1].dtype)
    for places, found in parts:
        whole[places] = found
    return whole, float(task_loss(torch.from_numpy(whole), torch.from_numpy(rows.labels)))
