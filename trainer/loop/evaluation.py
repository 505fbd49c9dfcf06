"""One evaluation of a model: what it gives for every row, each process a part of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from trainer.data.rows import Rows
from trainer.errors import RunFailed
from trainer.loop import checkpoints
from trainer.loop.batches import Batch, Batches
from trainer.machine import batch_shards, processes
from trainer.objectives.objective import Objective
from variants.core.step import Loss


@dataclass(frozen=True)
class Evaluation:
    """The metrics by name, the mean task loss, and the model's raw outputs."""

    metrics: dict[str, float]
    loss: float
    outputs: np.ndarray


class Evaluator:
    """Evaluates a model on any rows, without the penalty.

    forward: the model's outputs for a batch, and their loss. compute: the metrics
    of predictions and labels. size: rows of a batch; the processes divide batches.
    """

    def __init__(
        self,
        forward: Callable[[Batch], tuple[torch.Tensor, Loss]],
        objective: Objective,
        compute: Callable[[np.ndarray, np.ndarray], dict[str, float]],
        batches: Batches,
        size: int,
    ) -> None:
        self._forward, self._objective, self._compute = forward, objective, compute
        self._batches, self._size = batches, size

    def __call__(self, rows: Rows, step: int) -> Evaluation:
        """The model as it is after `step`. Raises `RunFailed` if its outputs are not finite."""
        # Making a data loader draws a number; without this the dropout of all later steps would depend on it.
        random = checkpoints.random_state()
        mine = np.asarray(batch_shards.evaluated(len(rows), self._size, processes.rank(), processes.count()))
        parts = processes.gathered((mine, *self.outputs(rows.view(mine))))
        checkpoints.restore_random(random)
        outputs = np.empty((len(rows), *parts[0][1].shape[1:]), parts[0][1].dtype)
        losses = np.empty(len(rows), parts[0][2].dtype)
        for places, found, loss in parts:
            outputs[places], losses[places] = found, loss
        if not np.isfinite(outputs).all():
            raise RunFailed(f"the model's outputs are not finite after step {step}")
        computed = self._compute(self._objective.predicted(outputs), rows.labels)
        return Evaluation(computed, float(losses.mean()), outputs)

    @torch.no_grad()
    def outputs(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """(outputs, losses): the model's outputs for `rows`, and for each row the mean loss of its batch."""
        outputs, means, weights = [], [], []
        for batch in self._batches.loaded(rows, self._size):
            logits, loss = self._forward(batch)
            outputs.append(logits)
            means.append(loss.mean)
            weights.append(batch.weight)
        return torch.cat(outputs).cpu().numpy(), np.repeat(torch.stack(means).cpu().numpy(), weights)
