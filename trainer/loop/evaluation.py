"""Evaluates a model on every example of a split; each process evaluates a part of the rows."""

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
from trainer.objectives import mixture
from trainer.objectives.objective import NotFinite, Objective, Predictions


@dataclass(frozen=True)
class Evaluation:
    """The metrics by name, the mean task loss, and the prediction for each example."""

    metrics: dict[str, float]
    loss: float
    predictions: Predictions


class Evaluator:
    """Evaluates a model on any rows, without the regularizer. size: rows per batch; the processes share the batches."""

    def __init__(self, network: Network, objective: Objective, batches: Batches, size: int) -> None:
        self._network, self._objective = network, objective
        self._batches, self._size = batches, size

    def __call__(self, rows: Rows, step: int) -> Evaluation:
        """Evaluates the model after `step`. Raises `RunFailed` if its outputs are not finite."""
        # A new data loader draws a random number; restoring the state keeps evaluation from changing training.
        random = checkpoints.random_state()
        mine = np.asarray(batch_shards.evaluated(len(rows), self._size, processes.rank(), processes.count()))
        gathered = processes.gathered((mine, self._outputs(rows.view(mine))))
        checkpoints.restore_random(random)
        by_row = {row: output for indices, outputs in gathered for row, output in zip(indices, outputs, strict=True)}
        try:
            predictions, loss = self._objective.evaluated(rows, [by_row[row] for row in range(len(rows))])
        except NotFinite:
            raise RunFailed(f"the model's outputs are not finite after step {step}") from None
        predictions, metrics = mixture.scored(self._objective, rows, predictions)
        return Evaluation(metrics, loss, predictions)

    def predictions(self, rows: Rows) -> Predictions:
        """Predicts `rows` in one process. Raises `NotFinite`."""
        return self._objective.evaluated(rows, self._outputs(rows))[0]

    @torch.no_grad()
    def _outputs(self, rows: Rows) -> list[Any]:
        """Returns the result of the objective's `predict` for each row; only one batch's logits exist at a time."""
        outputs: list[Any] = []
        for batch in self._batches.loaded(rows, self._size):
            outputs += self._objective.predict(self._network, batch.to(self._batches.device))
        return outputs
