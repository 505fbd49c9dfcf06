"""One evaluation of a model: what it gives for every example, each process a part of the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trainer.data.rows import Rows
from trainer.errors import RunFailed
from trainer.loop import checkpoints
from trainer.loop.batches import Batches
from trainer.loop.network import Network
from trainer.machine import batch_shards, processes
from trainer.objectives.objective import NotFinite, Objective, Predictions


@dataclass(frozen=True)
class Evaluation:
    """The metrics by name, the mean task loss, and what was predicted for each example."""

    metrics: dict[str, float]
    loss: float
    predictions: Predictions


class Evaluator:
    """Evaluates a model on any rows, without the penalty. size: rows of a batch; the processes divide batches."""

    def __init__(self, network: Network, objective: Objective, batches: Batches, size: int) -> None:
        self._network, self._objective = network, objective
        self._batches, self._size = batches, size

    def __call__(self, rows: Rows, step: int) -> Evaluation:
        """The model as it is after `step`. Raises `RunFailed` if its outputs are not finite."""
        # Making a data loader draws a number; without this the dropout of all later steps would depend on it.
        random = checkpoints.random_state()
        mine = np.asarray(batch_shards.evaluated(len(rows), self._size, processes.rank(), processes.count()))
        parts = processes.gathered((mine, self._predicted(rows.view(mine))))
        checkpoints.restore_random(random)
        by_place = {place: one for places, found in parts for place, one in zip(places.tolist(), found, strict=True)}
        try:
            predictions, loss = self._objective.evaluated(rows, [by_place[place] for place in range(len(rows))])
        except NotFinite:
            raise RunFailed(f"the model's outputs are not finite after step {step}") from None
        return Evaluation(self._objective.score(predictions), loss, predictions)

    def predictions(self, rows: Rows) -> Predictions:
        """What the model makes of `rows`, in one process. Raises `NotFinite`."""
        return self._objective.evaluated(rows, self._predicted(rows))[0]

    @torch.no_grad()
    def _predicted(self, rows: Rows) -> list[Any]:
        """Of each row what the objective needs of it; the model's outputs of one batch are there at a time."""
        found: list[Any] = []
        for batch in self._batches.loaded(rows, self._size):
            found += self._objective.predict(self._network, batch.to(self._batches.device))
        return found
